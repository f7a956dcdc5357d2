"""A chat model that answers by the words of a question; for tests of what is asked and read."""

from affectgpt.chat.request import Reply


class Asked:
    name = "toy"

    def __init__(self, answers):
        self.answers, self.asked = answers, []

    def answer(self, requests, max_new_tokens=None, *, refused_is_empty=False):
        self.asked += [request.prompt for request in requests]
        found = (next(text for words, text in self.answers.items() if words in request.prompt) for request in requests)
        return [Reply(text, 0, 0, "eos") for text in found]
