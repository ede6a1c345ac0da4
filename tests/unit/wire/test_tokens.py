"""Consistency tokens: what is demanded of a reader survives the way, or the token is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consentry.domain.errors import InvalidInput
from consentry.domain.values import Micros
from consentry.wire.tokens import Token, TokenKeys, merge, read_token, write_token

LOG = b"12345678"
KEYS = TokenKeys({1: b"a" * 32})
NEWER = TokenKeys({1: b"a" * 32, 2: b"b" * 32})
NONE = TokenKeys()
TOKEN = Token(LOG, {3: 1043, 17: 5}, 12, Micros(1_762_128_000_000_000))

numbers = st.integers(0, (1 << 63) - 1)
tokens = st.builds(
    Token,
    st.binary(min_size=8, max_size=8),
    st.dictionaries(st.integers(0, 4000), numbers, max_size=70),
    numbers,
    st.integers(0, 1 << 40).map(lambda seconds: Micros(seconds * 1_000_000)),
)


@given(tokens, st.sampled_from([KEYS, NEWER, NONE]))
def test_a_token_is_read_as_it_was_written(token: Token, keys: TokenKeys) -> None:
    """A reader that asks for less than was accepted would allow someone who had just opted out."""
    assert read_token(write_token(token, keys), keys) == token


def test_one_event_s_token_is_short_and_safe_in_an_address() -> None:
    """It goes into query strings, job configurations and logs of other systems."""
    text = write_token(Token(LOG, {17: 5_000_000_000}, 40, TOKEN.issued_at), KEYS)
    assert len(text) < 64
    assert text.replace("-", "").replace("_", "").isalnum()


@given(st.integers(0, 10_000), st.integers(1, 255), tokens)
def test_no_altered_token_is_read(place: int, change: int, token: Token) -> None:
    """Somebody who lowers an offset would be told that all is fresh."""
    text = write_token(token, KEYS)
    place %= len(text)
    altered = text[:place] + chr((ord(text[place]) + change) % 128) + text[place + 1 :]
    if altered != text:
        with pytest.raises(InvalidInput, match="token"):
            read_token(altered, KEYS)


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda raw: raw.decode("latin-1")))
def test_whatever_is_no_token_is_refused_as_such(text: str) -> None:
    """An error of another kind would be a 500, and a reader that does not answer."""
    for keys in (KEYS, NONE):
        with pytest.raises(InvalidInput):
            read_token(text, keys)


def code_of(text: str, keys: TokenKeys) -> str:
    """The code of the refusal."""
    with pytest.raises(InvalidInput) as refused:
        read_token(text, keys)
    return refused.value.code


def test_keys_rotate() -> None:
    """Tokens in running jobs must outlive the change of a key."""
    old, new = write_token(TOKEN, KEYS), write_token(TOKEN, NEWER)
    assert read_token(old, NEWER) == TOKEN
    assert read_token(new, NEWER) == TOKEN
    assert code_of(new, KEYS) == "token.key_unknown"


def test_who_has_keys_takes_no_unsigned_token_and_who_has_none_takes_any() -> None:
    """A token only adds a demand, so a trainer without keys may believe it; a gateway can do
    better.
    """
    assert code_of(write_token(TOKEN, NONE), KEYS) == "token.unsigned"
    assert read_token(write_token(TOKEN, KEYS), NONE) == TOKEN
    text = write_token(TOKEN, NONE)
    assert (
        code_of(text[:20] + ("A" if text[20] != "A" else "B") + text[21:], NONE)
        == "token.signature"
    )
    assert code_of(write_token(TOKEN, TokenKeys({1: b"c" * 32})), KEYS) == "token.signature"


def test_merged_tokens_ask_for_the_most_of_each() -> None:
    """A job over several events must know of all of them."""
    other = Token(LOG, {3: 7, 4: 9}, 40, Micros(5_000_000))
    merged = merge([TOKEN, other])
    assert merged == Token(LOG, {3: 1043, 17: 5, 4: 9}, 40, TOKEN.issued_at)
    assert merge([]) is None
    with pytest.raises(InvalidInput) as refused:
        merge([TOKEN, Token(b"another.", {}, 0, Micros(0))])
    assert refused.value.code == "token.other_log"


@pytest.mark.parametrize(
    "text",
    ["1:abc", "0:" + "aa" * 32, "256:" + "aa" * 32, "1:" + "aa" * 31, "x:" + "aa" * 32, "aa" * 32],
)
def test_bad_keys_are_refused_without_being_shown(text: str) -> None:
    """A start-up error ends in a log."""
    with pytest.raises(InvalidInput) as refused:
        TokenKeys.parse(text)
    assert refused.value.code == "token.keys"
    assert "aa" not in str(refused.value)


def test_keys_are_read_from_lines_and_never_shown() -> None:
    """The file comes from a secret store, with comments and a last line."""
    keys = TokenKeys.parse(f"# tokens\n1:{'aa' * 32}\n\n2:{'bb' * 40}\n")
    assert keys.signing == 2
    assert "aa" not in repr(keys)
    assert "bb" not in repr(keys)
    with pytest.raises(InvalidInput):
        TokenKeys.parse(f"1:{'aa' * 32}\n1:{'bb' * 32}")
