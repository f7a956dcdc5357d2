"""Chat models, served or in this process, behind one interface.

request.py      Request, Reply and Chat: what every model is asked, what it answers, what a caller may rely on
transport.py    Endpoint: one request to a server of the OpenAI protocol, with retries
completion.py   Completion and Fault: what a server sends back, checked
served.py       ChatClient: many requests to a server, with a log of the answers
streaming.py    StreamDecoder: the text of an answer while it is generated
local.py        TransformersChat: a transformers model in this process
constrained.py  its answers by a JSON schema
video.py        transformers' video processors without torchvision
batches.py      Batcher: requests that arrive together are answered together
concurrency.py  many asyncio tasks at once, and a signal that stops them
"""
