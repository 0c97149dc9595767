"""What goes wrong between here and a server, each fault over a real connection: put right, or said in one sentence."""

import socket
import threading
import time

import pytest

from engine.run import execute
from engine.server import connection, faults
from engine.server.client import Client
from spec.errors import Cancelled, IsoquantError, ServerError, SpecError
from spec.results import Answered
from spec.run_spec import RunSpec, Runtime, TaskSpec
from tests.fake_server import Break, FakeServer, Garbage, Hang, MidError, Miscounted, Status, Text, Uncounted


@pytest.fixture
def server():
    with FakeServer(["fake"]) as found:
        yield found


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(faults, "FIRST_PAUSE_S", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def spec_on(address, limit=3, batch=2, **more):
    return RunSpec("fake", runtime=Runtime(f"openai:{address}", batch_size=batch), task=TaskSpec(limit=limit), **more)


def run(server, on_event=lambda e: None, **more):
    return execute(spec_on(server.address, **more), on_event)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Status(500), "failed"),
        (Status(503, headers={"Retry-After": "0.01"}), "asked to wait"),
        (Status(429, headers={"Retry-After": "0"}), "asked to wait"),
        (Status(429), "asked to wait"),
        (Break(after=0), "broke off its answer"),
        (Break(after=2), "broke off its answer"),
        (Garbage(), "broke off its answer"),
        (MidError(), "failed"),
        (Uncounted(), "broke off its answer"),
        (Miscounted(), "broke off its answer"),
    ],
)
def test_what_may_pass_is_put_again_and_counted(server, fault, words):
    server.faults = [fault]
    result = run(server)
    assert result.measures["n_problems"] == 3
    assert result.measures["n_failed"] == 0
    assert result.measures["tokens_generated"] == 3 * 5
    assert any(f"The server {words} once" in n for n in result.notes), result.notes
    assert len(server.asked) == 4


def test_a_server_that_asks_to_wait_is_waited_for(server):
    server.faults = [Status(429, headers={"Retry-After": "1"})]
    started = time.monotonic()
    run(server, limit=1)
    assert time.monotonic() - started >= 1


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Status(500), r"failed \(500: 'scripted'\) \(5 tries\); look at the server's log"),
        (Status(401), r"denies access \(401: 'scripted'\); set OPENAI_API_KEY"),
        (Status(404), "does not know what was asked"),
        (Break(after=1), r"broke off its answer .*\(4 tries\)"),
        (Status(307, headers={"Location": "http://elsewhere.example/v1"}), "sends on to 'http://elsewhere.example/v1'"),
    ],
)
def test_what_stays_ends_the_run_and_loses_nothing(server, fault, words):
    answered = []
    # The first problem is answered, the second never.
    server.write = lambda body: Text([" #### 1"])
    server.faults = [None, *[fault] * 20]
    with pytest.raises(ServerError, match=words):
        run(server, lambda e: answered.append(e) if isinstance(e, Answered) else None, batch=1)
    assert len(answered) == 1
    server.faults = []
    result = execute(spec_on(server.address), answered=[a.answer for a in answered])
    assert result.measures["n_problems"] == 3


def test_a_prompt_that_is_too_long_ends_its_problem_alone(server):
    server.faults = [Status(400, '{"error": {"message": "maximum context length is 8 tokens"}}')]
    result = run(server)
    assert result.measures["n_failed"] == 1
    assert result.measures["n_problems"] == 2


def test_a_server_that_answers_no_prompt_is_not_asked_them_all(server):
    server.always = Status(400, '{"error": {"message": "no"}}')
    with pytest.raises(ServerError, match=r"refuses the request \(400: 'no'\).*No prompt of the first batch"):
        run(server)
    assert not server.asked


def test_nobody_listens():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    started = time.monotonic()
    with pytest.raises(
        ServerError, match=r"cannot be reached \(Connection refused\); start it, or correct the address"
    ):
        execute(spec_on(address))
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("listing", "words"),
    [
        ("<html>hello</html>", "which is no JSON"),
        ("[]", "lists no models in the form of the OpenAI API"),
        ('{"data": 3}', "lists no models"),
        (
            Status(401, "Incorrect API key provided: sk-secret"),
            r"denies access \(401: 'Incorrect API key provided: \(key\)",
        ),
        (Status(302, "", {"Location": "http://elsewhere.example/?k=sk-secret"}), r"k=\(key\)', which is not followed"),
    ],
)
def test_a_list_of_models_that_is_none(server, monkeypatch, listing, words):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server.listing = listing
    with pytest.raises(ServerError, match=words) as caught:
        run(server)
    assert "sk-secret" not in str(caught.value)
    assert not server.bodies


@pytest.mark.parametrize("fault", [MidError("no such key sk-secret, nor " + "x" * 400), Garbage('"sk-secret')])
def test_no_event_that_goes_wrong_shows_the_key(server, monkeypatch, fault):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server.always = fault
    with pytest.raises(ServerError, match=r"\(key\)") as caught:
        run(server)
    assert "sk-" not in str(caught.value)


def test_white_space_around_the_key_is_no_part_of_it(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", " sk-secret\r\n")
    run(server, limit=1)
    assert {h["Authorization"] for h in server.headers} == {"Bearer sk-secret"}


@pytest.mark.parametrize("key", ["sk-\nsecret", "sk-s\u00e9cret", "sk-\x7fsecret"])
def test_a_key_that_no_header_can_hold_is_said_and_not_shown(server, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ServerError, match="OPENAI_API_KEY holds characters that no key has") as caught:
        run(server)
    assert "cret" not in str(caught.value)
    assert not server.bodies


def test_a_wrong_path(server):
    with pytest.raises(
        ServerError, match=r"does not know what was asked .*; the address ends in /v1 with most servers"
    ):
        execute(spec_on(server.address.removesuffix("/v1")))


def test_a_server_that_hangs_is_given_up(server, monkeypatch):
    monkeypatch.setattr(connection, "SILENCE_S", 0.2)
    monkeypatch.setattr(Client.__init__, "__defaults__", (0.2,))
    server.faults = [None, Hang(after=1), Hang(after=1)]
    started = time.monotonic()
    with pytest.raises(ServerError, match=r"said nothing for 0.2 s \(2 tries\)"):
        run(server, batch=1)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("hang", [Hang(0), Hang(2), Status(429, headers={"Retry-After": "60"})])
def test_a_cancel_is_heard_within_a_second(server, hang):
    server.faults = [hang] * 4
    asked = threading.Event()

    def watch():
        while not server.asked:
            time.sleep(0.01)
        time.sleep(0.1)
        asked.set()

    threading.Thread(target=watch, daemon=True).start()
    at = []

    def cancelled():
        if asked.is_set() and not at:
            at.append(time.monotonic())
        return asked.is_set()

    with pytest.raises(Cancelled):
        execute(spec_on(server.address), cancelled=cancelled)
    assert time.monotonic() - at[0] < 1
    assert not [t for t in threading.enumerate() if t.name.startswith("request-")]


def test_a_cancel_is_heard_while_the_server_is_asked_what_it_can_do(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        started = time.monotonic()
        with pytest.raises(Cancelled):
            execute(
                spec_on(f"http://127.0.0.1:{mute.getsockname()[1]}/v1"),
                cancelled=lambda: time.monotonic() - started > 0.3,
            )
        assert time.monotonic() - started < 3


def test_connections_are_kept_and_found_closed(server):
    """A server may close a connection that rests; the next request opens another, and that is no fault."""
    client = Client(server.address)
    one = client.connect()
    client.models(one)
    one._http.sock.shutdown(socket.SHUT_RDWR)
    assert client.models(one)
    assert not client.again


def test_bad_addresses_are_refused_by_the_specification():
    for address in ("localhost:8000", "ftp://x/v1", "http://", "http://a b/v1", "http://u:p@x/v1", "http://x/v1?key=1"):
        with pytest.raises(SpecError, match="address"):
            Runtime("openai", server=address)
    for port in ("0", "65536", "abc", "-1"):
        with pytest.raises(SpecError, match="port"):
            Runtime("openai", server=f"http://x:{port}/v1")
    assert Runtime("openai:http://[::1]:8000/v1/").server == "http://[::1]:8000/v1"
    with pytest.raises(SpecError, match="at most 1,024 requests"):
        Runtime("openai", server="http://x/v1", batch_size=2000)


def test_every_error_is_one_a_person_can_read():
    assert issubclass(ServerError, IsoquantError)
    for kind in faults.Kind:
        assert str(faults.Fault(kind, "did this").error("http://x")).startswith("The server at http://x did this; ")


@pytest.mark.parametrize(
    ("text", "seconds"), [(None, None), ("3", 3.0), ("soon", None), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0)]
)
def test_retry_after_is_a_number_or_a_date(text, seconds):
    assert connection._seconds(text) == seconds
