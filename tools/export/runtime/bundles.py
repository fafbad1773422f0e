"""Text from text with a LiteRT-LM bundle, which has the tokenizer and the template."""


class Bundle:
    """A decoder, run by litert-lm-api.

    Attributes:
        about: What `signature.json` says.
    """

    def __init__(self, path, about, num_threads=2):
        """Opens the bundle."""
        import litert_lm

        litert_lm.set_min_log_severity(litert_lm.LogSeverity.ERROR)
        self.about = about
        self._engine = litert_lm.Engine(
            str(path),
            litert_lm.Backend.CPU(thread_count=num_threads),
            cache_dir=":nocache",  # else it leaves a file beside the bundle
        )
        self._greedy = litert_lm.SamplerConfig(top_k=1, top_p=1.0, temperature=1.0)

    def predict(self, **fields):
        """Returns the `prediction` for a `text`, or for a conversation's `messages`.

        The runtime leaves no turn out of a long conversation, as the task does.
        """
        task, number = self.about["task"], self.about["writing"]["max_new_tokens"]
        text, turns = fields.get("text"), fields.get(task.get("messages"))
        if not isinstance(text, str) and not turns:
            raise ValueError(f"'text' is {text!r:.40}, not a text; give one")
        if task["name"] != "chat":
            return {"prediction": self.generate(text, number)}
        turns = turns or [{"role": "user", "content": text}]
        roles = [turn["role"] for turn in turns]
        if "assistant" in roles:  # its last turn is what is predicted
            turns = turns[: len(turns) - 1 - roles[::-1].index("assistant")]
        talk = self._engine.create_conversation(
            messages=turns[:-1],
            sampler_config=self._greedy,
            max_output_tokens=number or None,
        )
        return {"prediction": str(talk.send_message(turns[-1]))}

    def generate(self, text, max_new_tokens=0):
        """Continues a text by the likeliest token each time."""
        session = self._engine.create_session(
            sampler_config=self._greedy, max_output_tokens=max_new_tokens or None
        )
        session.run_prefill([text])
        return session.run_decode().texts[0]

    def complete(self, prompt, max_new_tokens=0):
        """Continues tokens; the runtime begins with the mark of a text by itself."""
        ids = [i for i in prompt if i != self.about["marks"]["bos"]]
        text = self._engine.detokenize(ids)
        return {"prediction": self.generate(text, max_new_tokens)}
