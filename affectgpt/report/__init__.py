"""python -m affectgpt.report: one HTML file about a run or about predictions, to send to a colleague.

html.py        elements whose text is always escaped
gather.py      what the report is about: systems, clips, curves, run records
pictures.py    plots and frames as data URIs
page.py        the sections of the page
command.py     the command
"""
