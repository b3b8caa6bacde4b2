"""What happens in a chat: messages are answered and commands obeyed, wherever they come from."""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pixedge.commands import answer_figures
from pixedge.commands.attachments import read_attachment
from pixedge.commands.chat_settings import change, show, show_changed
from pixedge.commands.dropped_paths import read_message
from pixedge.commands.interruption import ctrl_c_ends
from pixedge.commands.pictures import check_sources, expand_sources, is_url
from pixedge.commands.stages import show_stages
from pixedge.conversation import Attachment, Conversation
from pixedge.errors import PixedgeError, UsageError
from pixedge.terminal import note, say

if TYPE_CHECKING:
    from pixedge.model import Answer, Model
    from pixedge.sampling import SamplingParams

COMMANDS = {
    "/image": ("PATH|GLOB|URL", "attach pictures or pages of a PDF to the next message"),
    "/images": ("", "list the pictures of the conversation"),
    "/system": (
        "TEXT",
        "set the instruction ahead of the conversation; without TEXT show it, off removes it",
    ),
    "/set": ("NAME VALUE", "change a setting, /set temperature 0.2; without a name show all"),
    "/retry": ("", "answer the last question again"),
    "/undo": ("", "take the last question and its answer back"),
    "/clear": ("", "forget the conversation and its pictures"),
    "/save": ("FILE", "write the conversation to a file"),
    "/load": ("FILE", "go on with a conversation from a file"),
    "/stats": ("", "show tokens, times and memory"),
    "/help": ("", "show this"),
    "/quit": ("", "leave; Ctrl-D does too"),
}


class ChatSession:
    """A conversation with a model, one message or command at a time."""

    def __init__(
        self,
        model: "Model",
        params: "SamplingParams",
        *,
        system: str | None = None,
        allow_url: bool = False,
        dpi: int | None = None,
        quiet: bool = False,
    ) -> None:
        """Begin an empty conversation; dpi is for pages of documents, see read_source."""
        self.model = model
        self.params = params
        self.conversation = Conversation(system)
        self.allow_url = allow_url
        self.dpi = dpi
        self.quiet = quiet
        self.last: Answer | None = None

    def take(self, line: str) -> bool:
        """Answer a message or obey a command; False when the chat is to end.

        Raises PixedgeError, with the conversation as it was.
        """
        word, _, rest = line.strip().partition(" ")
        if word == "/quit":
            return False
        if word in COMMANDS:
            getattr(self, f"_{word[1:]}")(rest.strip())
            return True
        message = read_message(line)
        for name in message.doubtful:
            note(f"{name} is not a file here; the model gets its name and no picture")
        if not message.paths and word.startswith("/") and word.count("/") == 1:
            raise UsageError(f"there is no command {word}; /help lists them")
        self._attach(message.paths, again=False)
        if message.text.strip():
            self._answer(message.text)
        elif not self.quiet:
            note("ask about it")
        return True

    def attach(self, sources: Sequence[str]) -> None:
        """Attach pictures to the next message; raises ImageError or UsageError, and then attaches none."""
        check_sources(sources, self.allow_url)
        self._attach(expand_sources(sources))

    def status(self) -> str:
        """Say how much of the context is used and left."""
        exchanges, whole = self.conversation.exchanges, self._room()
        used = exchanges[-1].tokens if exchanges else 0
        if used is None:
            return f"room for {whole:,} tokens, counted with the next answer"
        used = min(used, whole)  # an answer's last token takes no room
        return f"{used:,} of {whole:,} tokens used, {whole - used:,} left"

    # Messages

    def _attach(self, names: Sequence[str], again: bool = True) -> None:
        """Read and attach all or none; not ``again`` leaves out what the conversation holds already."""
        known = {each.hash for each in self.conversation.attachments}
        found: list[Attachment] = []
        for name in names:
            attachment = self._read(name, sum(len(each.pictures) for each in found))
            if again or attachment.hash not in known:
                found.append(attachment)
            else:
                note(f"{name} is in the conversation already")
        self.conversation.waiting += found
        for each in found:
            self._say_attached(each)

    def _read(self, name: str, more: int = 0) -> Attachment:
        """Read the pictures of one source; ``more`` are on their way besides those of the conversation."""
        from pixedge.image import ImageLimits

        limits = ImageLimits()
        room = limits.max_images - self.conversation.n_pictures - more
        if room < 1:
            limits.check_count(limits.max_images + 1)
        if is_url(name) and not self.allow_url:
            raise UsageError(f"{name} is on the network; start with --allow-url to have it downloaded")
        limits = dataclasses.replace(limits, max_images=room)
        return read_attachment(name, limits, self.dpi, self._longest)

    def _answer(self, question: str) -> None:
        """Ask, show the answer as it comes, and add both to the conversation."""
        messages = self.conversation.ask(question)
        stopped = False
        with contextlib.ExitStack() as bars:
            on_stage = bars.enter_context(show_stages(self.quiet))
            stream = self.model.stream(messages, self.params, shorten=True, on_stage=on_stage)
            try:
                with ctrl_c_ends(stream) as interrupted:
                    for piece in stream:
                        bars.close()
                        say(piece)
                    stopped = bool(interrupted)
            finally:
                bars.close()
                say("\n")
        answer = stream.answer
        if not answer.text.strip():
            note("nothing was said; the question is forgotten, its pictures wait for the next one")
            return
        self.last = answer
        self.conversation.add(question, answer.text, answer.prompt_tokens + answer.completion_tokens)
        if stopped:
            note("stopped; what was said so far stays, /undo takes it back")
        elif answer.finish_reason == "length":
            note(self._why_cut(answer))
        if not self.quiet:
            note(self._figures(answer))

    def _why_cut(self, answer: "Answer") -> str:
        if answer.completion_tokens >= self.params.max_tokens:
            return f"cut after {answer.completion_tokens} tokens; /set max_tokens lets answers be longer"
        return f"cut after {answer.completion_tokens} tokens: no room is left; /undo or /clear makes some"

    def _figures(self, answer: "Answer") -> str:
        rate = answer.tokens_per_second
        parts = [
            self.status(),
            f"{answer.cached_tokens:,} of the prompt's {answer.prompt_tokens:,} known from before",
            f"first token after {answer.timings.first_token:.2f} s",
        ]
        return ", ".join(parts if rate is None else [*parts, f"{rate:.1f} tokens/s"])

    def _say_attached(self, attachment: Attachment) -> None:
        if self.quiet:
            return
        width, height = attachment.pictures[0].size
        several = len(attachment.pictures)
        what = f"{width} x {height}" if several == 1 else f"{several} pages"
        note(f"attached {attachment.source} ({what})")

    def _longest(self) -> int:
        sizes = (self.model.config.vision.image_size, self.model.max_image_size)
        return min(size for size in sizes if size is not None)

    def _room(self) -> int:
        """Return the tokens that a conversation may have."""
        return min(self.model.config.decoder.context, self.model.engine.cache.tokens)

    # Commands; what follows the word is their argument

    def _image(self, argument: str) -> None:
        if not argument:
            raise UsageError("/image needs a file, a pattern or an address")
        message = read_message(argument)
        self.attach(message.paths if message.paths and not message.text else [argument])

    def _images(self, _: str) -> None:
        found = 0
        turns = [*(each.attachments for each in self.conversation.exchanges), self.conversation.waiting]
        for turn, attachments in enumerate(turns, 1):
            where = f"message {turn}" if turn <= len(self.conversation.exchanges) else "next message"
            for attachment in attachments:
                for picture in attachment.pictures:
                    found += 1
                    width, height = picture.size
                    note(f"{found:>3}  {where}  {width} x {height}  {attachment.source}")
        if not found:
            note("no pictures yet; /image FILE attaches one, and so does a path in a message")

    def _system(self, argument: str) -> None:
        if argument:
            self.conversation.system = None if argument == "off" else argument
        note(f"instruction: {self.conversation.system or 'none'}")

    def _set(self, argument: str) -> None:
        name, _, value = argument.partition(" ")
        if name and value.strip():
            self.params = change(self.params, name, value.strip())
        note(show(self.params, name))

    def _retry(self, _: str) -> None:
        self._need_exchange()
        if self.params.greedy or self.params.seed is not None:
            note("temperature is 0 or the seed is set, so the answer stays the same; see /set")
        conversation = self.conversation
        question = conversation.exchanges[-1].question
        if question is None:
            raise UsageError("the last answer has no question before it; type one")
        waiting, last = conversation.waiting, conversation.take_back()
        conversation.waiting = list(last.attachments)
        try:
            self._answer(question)
        finally:
            if conversation.waiting:  # there was no answer to take its place
                conversation.waiting = []
            conversation.waiting += waiting

    def _undo(self, _: str) -> None:
        self._need_exchange()
        taken = self.conversation.take_back()
        note(f"taken back: {(taken.question or taken.answer or '')[:60]}")

    def _clear(self, _: str) -> None:
        self.conversation.clear()
        self.last = None
        note("the conversation is empty")

    def _save(self, argument: str) -> None:
        from pixedge.transcript import write_transcript

        if not argument:
            raise UsageError("/save needs a file's name")
        file = Path(argument).expanduser()
        try:
            write_transcript(file, self.conversation, self.params, str(self.model.folder))
        except OSError as error:
            raise PixedgeError(f"{file} cannot be written ({error.strerror}); choose another place") from None
        count = len(self.conversation.exchanges)
        note(f"saved {count} {'turn' if count == 1 else 'turns'} to {file}")

    def _load(self, argument: str) -> None:
        from pixedge.transcript import read_transcript

        if not argument:
            raise UsageError("/load needs a file's name")
        before, self.conversation = self.conversation, Conversation()
        try:
            loaded, params = read_transcript(Path(argument).expanduser(), self._read)
        finally:
            self.conversation = before
        self.conversation, self.params, self.last = loaded, params, None
        count, changed = len(loaded.exchanges), show_changed(params)
        turns = f"{count} {'turn' if count == 1 else 'turns'}"
        settings = f"; {changed}" if changed else ""
        note(f"loaded {turns} about {_count_pictures(loaded.n_pictures)}{settings}")

    def _stats(self, _: str) -> None:
        talk = self.conversation
        lines = [
            f"model: {self.model.folder}, loaded in {self.model.load_seconds:.1f} s",
            f"conversation: turns {len(talk.exchanges)}, pictures {talk.n_pictures}, {self.status()}",
        ]
        if (answer := self.last) is not None:
            lines += [f"last answer: {answer_figures.stages(answer)}"]
        lines += [answer_figures.memory(self.model)]
        for line in lines:
            note(line)

    def _help(self, _: str) -> None:
        width = max(len(f"{name} {argument}") for name, (argument, _) in COMMANDS.items())
        for name, (argument, purpose) in COMMANDS.items():
            note(f"{f'{name} {argument}':<{width}}  {purpose}")
        note("Paths to pictures in a message are attached. Alt-Enter, or \\ at the end, begins a new line.")

    def _need_exchange(self) -> None:
        if not self.conversation.exchanges:
            raise UsageError("nothing has been asked yet; type a question")


def _count_pictures(count: int) -> str:
    return {0: "no picture", 1: "1 picture"}.get(count, f"{count} pictures")
