"""Whether the Hugging Face Hub can be reached, and who is logged in there: by its own library, within seconds."""

from dataclasses import dataclass
from threading import Thread

from huggingface_hub import HfApi, constants, get_token, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError

from calrec_lite.errors import one_line

SECONDS = 5  # for both questions together; a name server that does not answer has no limit of its own
ASKED = "HuggingFaceTB/SmolLM2-135M"  # an open model


@dataclass(frozen=True)
class Hub:
    """What is known of the Hub.

    Attributes:
        reached: an open model was found there.
        why: why it was not; "" where it was.
        user: who is logged in; None: nobody, or it was not asked.
        token: whether there is a token.
        refused: why the Hub does not take the token; "" where it does.
    """

    reached: bool = False
    why: str = ""
    user: str | None = None
    token: bool = False
    refused: str = ""


def ask_hub(seconds: float = SECONDS) -> Hub:
    """Ask it; nothing is asked where HF_HUB_OFFLINE is set."""
    token = get_token() is not None
    if constants.is_offline_mode():
        return Hub(why="HF_HUB_OFFLINE is set", token=token)
    answers: list[Hub] = []
    # A thread of its own: it may be left behind where nothing answers.
    thread = Thread(target=lambda: answers.append(_asked(seconds, token)), daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else Hub(why=f"no answer from {constants.ENDPOINT} in {seconds:g} s", token=token)


def is_downloaded(model: str) -> bool:
    """Whether a Hub model's config lies in the Hub's cache."""
    return isinstance(try_to_load_from_cache(model, "config.json"), str)


def _asked(seconds: float, token: bool) -> Hub:
    api = HfApi()
    try:
        api.model_info(ASKED, timeout=seconds, token=False)
    except Exception as error:  # of the library, of its HTTP client, of sockets: the Hub is of no use here
        return Hub(why=f"{constants.ENDPOINT}: {one_line(error, 120)}", token=token)
    if not token:
        return Hub(reached=True)
    try:
        return Hub(reached=True, user=str(api.whoami()["name"]), token=True)
    except (HfHubHTTPError, OSError) as error:
        return Hub(reached=True, token=True, refused=one_line(error, 120))
