"""Settings: the order of the sources, the origins, the one-line errors, secrets, and the example file."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from edged.cli.config import config
from edged.settings import Loaded, SettingsError, describe, example_toml, load
from edged.settings.keys import KEYS

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def clean_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.upper().startswith("EDGED_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("edged.settings.sources.DEFAULT_FILE", tmp_path / "etc" / "edged.toml")


@pytest.fixture
def toml(tmp_path: Path) -> Any:
    def write(text: str) -> Path:
        path = tmp_path / "edged.toml"
        path.write_text(text)
        return path

    return write


def fault(config: Path | None = None, flags: dict[str, Any] | None = None) -> str:
    with pytest.raises(SettingsError) as caught:
        load(config, flags)
    message = str(caught.value)
    assert "\n" not in message
    return message


def shown(loaded: Loaded) -> dict[str, Any]:
    return {key: value for key, value, _, _ in describe(loaded)}


def test_without_any_source_every_value_is_a_default() -> None:
    loaded = load()
    assert set(loaded.origins.values()) == {"default"}
    assert loaded.settings.http.port == 9765


def test_the_file_is_stronger_than_defaults_and_the_environment_than_the_file_and_a_flag_than_both(
    toml: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = toml('[mqtt]\nhost = "file"\nusername = "file"\nkeep_alive = 60\n')
    monkeypatch.setenv("EDGED_MQTT__HOST", "environment")
    monkeypatch.setenv("EDGED_MQTT__USERNAME", "environment")
    loaded = load(path, {"mqtt": {"host": "flag"}})
    mqtt = loaded.settings.mqtt
    assert (mqtt.host, mqtt.username, mqtt.keep_alive) == ("flag", "environment", 60)
    assert loaded.origins["mqtt.host"] == "--mqtt-host"
    assert loaded.origins["mqtt.username"] == "EDGED_MQTT__USERNAME"
    assert loaded.origins["mqtt.keep_alive"] == str(path)
    assert loaded.origins["mqtt.root"] == "default"


def test_the_file_in_etc_is_read_if_it_is_there(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "edged.toml").write_text("drain_seconds = 5\n")
    loaded = load()
    assert loaded.settings.drain_seconds == 5
    assert loaded.origins["drain_seconds"] == str(tmp_path / "etc" / "edged.toml")


def test_a_named_file_takes_the_place_of_the_one_in_etc(tmp_path: Path, toml: Any) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "edged.toml").write_text("drain_seconds = 5\n")
    assert load(toml("")).settings.drain_seconds == 20


def test_a_flag_that_was_not_given_changes_nothing() -> None:
    assert load(None, {"mqtt": {"host": None}, "device": None}).settings.mqtt.host == "127.0.0.1"


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGED_MQTT__PORT", "")
    assert load().origins["mqtt.port"] == "default"


@pytest.mark.parametrize(
    ("text", "value"),
    [("auto", "auto"), ("cpu", ["cpu"]), ("cuda, cpu", ["cuda", "cpu"]), ('["tensorrt"]', ["tensorrt"])],
)
def test_a_list_in_the_environment_is_commas_or_json(monkeypatch: pytest.MonkeyPatch, text: str, value: Any) -> None:
    monkeypatch.setenv("EDGED_MODEL__EXECUTION_PROVIDER", text)
    assert load().settings.model.execution_provider == value


def test_a_wrong_value_is_named_with_its_key_its_source_and_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EDGED_MQTT__PORT", "99999")
    assert fault() == "mqtt.port = 99999 (from EDGED_MQTT__PORT): must be a whole number from 1 to 65535"
    monkeypatch.delenv("EDGED_MQTT__PORT")
    monkeypatch.setenv("EDGED_MODEL__MAX_STALL", "quick")
    assert fault() == "model.max_stall = quick (from EDGED_MODEL__MAX_STALL): must be a number from 0.01 to 60"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[mqtt]\nport = 0", "mqtt.port = 0"),
        ("[mqtt]\nport = true", "mqtt.port = true"),
        ("[mqtt]\nprotocol = 5", '"auto", "5" or "3.1.1"'),
        ('[mqtt]\nroot = "/edged"', "mqtt.root = /edged"),
        ('[mqtt]\nroot = "edged/+/v1"', "mqtt.root = edged/+/v1"),
        ('[mqtt]\nroot = "edged/v1/"', "mqtt.root = edged/v1/"),
        ('[mqtt]\nroot = "$share/a"', "mqtt.root = $share/a"),
        ('[mqtt]\nhost = "mqtt://broker"', "without scheme"),
        ('[mqtt]\nhost = "broker:1883"', "the port has a key of its own"),
        ('[mqtt]\nhost = "[::1]"', "an IPv6 address no brackets"),
        ('[http]\nhost = "127.0.0.1:9765"', "the port has a key of its own"),
        ('[device]\nid = "a/b"', "device.id = a/b"),
        ('[device]\nid = "' + "a" * 65 + '"', "1 to 64 characters"),
        ('[device]\ngroups = ["fine", "not fine"]', "device.groups"),
        ("[model]\nexecution_provider = []", "model.execution_provider = []"),
        ('[model]\nexecution_provider = ["cpu", "cpu"]', "twice"),
        ('[model]\nexecution_provider = [["cpu"]]', "model.execution_provider"),
        ('[model]\nexecution_provider = "gpu"', '"cpu", "cuda" or "tensorrt"'),
        ("[model]\nrows = 65", "model.rows = 65"),
        ("[model]\ncontext = 15", "from 16 to"),
        ("[jobs]\nmax_bytes = 1048577", "from 1024 to 1048576"),
        ("drain_seconds = 601", "from 0 to 600"),
        ("mqtt = 5", "must be a section, [mqtt]"),
    ],
)
def test_the_file_and_the_bound_are_named_for(toml: Any, text: str, expected: str) -> None:
    path = toml(text)
    message = fault(path)
    assert expected in message
    assert f"(from {path})" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[mqtt]\nusername = "u"\npassword = "p"\npassword_file = "/p"', "together with mqtt.password"),
        ('[mqtt]\npassword = "p"', "mqtt.username is not set: must be set where there is a password"),
        ('[mqtt]\ntls = true\ncert_file = "/c"', "mqtt.key_file is not set: must be set together"),
        ('[mqtt]\ntls = true\nkey_file = "/k"', "mqtt.cert_file is not set: must be set together"),
        ('[mqtt]\ncert_file = "/c"\nkey_file = "/k"', "mqtt.tls = false (from default): must be true"),
        ('[mqtt]\nca_file = "/c"', "mqtt.tls = false (from default): must be true where mqtt.ca_file is set"),
        ("[power]\nidle_watts = 2", "power.busy_watts is not set: must be set together with power.idle_watts"),
        ("[power]\nidle_watts = 5\nbusy_watts = 4", "must not be less than power.idle_watts"),
        (
            "[power]\nidle_watts = 2\nbusy_watts = 4\nbudget_joules_per_day = 172800",
            "must be more than the 172800 J of power.idle_watts in a day",
        ),
        ('[http]\ncert_file = "/c"', "http.key_file is not set: must be set together with http.cert_file"),
        ('[http]\nclient_ca_file = "/c"', "http.cert_file is not set: must be set where http.client_ca_file is"),
        ('[http]\nhost = "0.0.0.0"', "must be set where http.host is 0.0.0.0, or http.plain_text be true"),
        ('[http]\nhost = "::"', "must be set where http.host is ::, or http.plain_text be true"),
        ('[http]\nhost = "board.lan"', "must be set where http.host is board.lan, or http.plain_text be true"),
    ],
)
def test_keys_that_do_not_fit_together_are_named(toml: Any, text: str, expected: str) -> None:
    assert expected in fault(toml(text))


@pytest.mark.parametrize("host", ["::1", "fe80::1%eth0", "2001:db8::1"])
def test_a_broker_may_have_an_address_of_ipv6(toml: Any, host: str) -> None:
    assert load(toml(f'[mqtt]\nhost = "{host}"')).settings.mqtt.host == host


def test_fallbacks_have_their_own_port_or_that_of_the_first(toml: Any) -> None:
    listed = '["two.example", "10.0.0.3:1884", "fe80::1%eth0", "[2001:db8::1]:1885"]'
    mqtt = load(toml(f'[mqtt]\nhost = "one"\ntls = true\nfallbacks = {listed}')).settings.mqtt
    addresses = ["one:8883", "two.example:8883", "10.0.0.3:1884", "[fe80::1%eth0]:8883", "[2001:db8::1]:1885"]
    assert [broker.address for broker in mqtt.brokers] == addresses
    assert all(broker.tls and not broker.fallbacks for broker in mqtt.brokers)


@pytest.mark.parametrize("wrong", ["two:0", "two:65536", "two:", "a:b:c", "[two]:1", "[::1", "a b", "mqtt://two", ""])
def test_a_wrong_fallback_is_told_how_it_is_written(toml: Any, wrong: str) -> None:
    told = fault(toml(f'[mqtt]\nfallbacks = ["{wrong}"]'))
    assert "mqtt.fallbacks = " in told
    assert "each HOST or HOST:PORT" in told


@pytest.mark.parametrize("listed", ['["127.0.0.1"]', '["two", "two:1883"]'])
def test_no_broker_stands_twice_among_the_fallbacks(toml: Any, listed: str) -> None:
    assert fault(toml(f"[mqtt]\nfallbacks = {listed}")).endswith("must name no broker twice, and not mqtt.host")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_loopback_needs_no_tls(toml: Any, host: str) -> None:
    assert load(toml(f'[http]\nhost = "{host}"')).settings.http.is_loopback


def test_several_wrong_values_are_counted_on_one_line(toml: Any) -> None:
    assert fault(toml("drain_seconds = -1\n[mqtt]\nport = 0\nkeep_alive = 1\n")).endswith("(and 2 more)")


def test_a_wrong_list_is_one_fault_however_many_alternatives_it_fails(toml: Any) -> None:
    assert "more)" not in fault(toml('[model]\nexecution_provider = ["gpu", "npu"]\n'))


@pytest.mark.parametrize(
    ("text", "meant"),
    [("[mqtt]\nhots = 'x'", "mqtt.host"), ("host = 'x'", "mqtt.host"), ("[model]\nrow = 2", "model.rows")],
)
def test_an_unknown_key_of_the_file_is_named_with_the_nearest_known_one(toml: Any, text: str, meant: str) -> None:
    path = toml(text)
    assert fault(path).endswith(f"(from {path}): no such setting; did you mean {meant}?")


def test_an_unknown_key_that_resembles_nothing_gets_no_guess(toml: Any) -> None:
    assert fault(toml("zzzz = 1")).endswith("zzzz (from " + str(toml("zzzz = 1")) + "): no such setting")


@pytest.mark.parametrize("name", ["EDGED_MQTT_HOST", "EDGED_MQTT__HOTS", "EDGED_HOST"])
def test_an_unknown_variable_is_named_with_the_nearest_known_one(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "broker")
    assert fault() == f"{name}: no such setting; did you mean EDGED_MQTT__HOST?"


def test_a_whole_section_in_one_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGED_MQTT", '{"host": "broker"}')
    assert fault().startswith("EDGED_MQTT: mqtt is a section")


def test_variables_for_the_chat_template_are_a_table_or_json(toml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = toml("[model.chat_template_kwargs]\nenable_thinking = false\n")
    assert load(path).settings.model.chat_template_kwargs == {"enable_thinking": False}
    monkeypatch.setenv("EDGED_MODEL__CHAT_TEMPLATE_KWARGS", '{"enable_thinking": true, "tone": ["dry"]}')
    assert load(path).settings.model.chat_template_kwargs == {"enable_thinking": True, "tone": ["dry"]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "must be an object of up to 64 variables of the chat template"),
        ("{tools = 1}", "must not have tools, which edged gives the chat template itself"),
        ("{_x = 1}", "must have names of 1 to 64 letters"),
        ("{day = 2027-01-01}", "must have values of JSON"),
        ("{x = nan}", "must have values of JSON"),
        (f'{{x = "{"y" * 70_000}"}}', "must have at most 65536 characters of JSON"),
    ],
)
def test_variables_that_a_chat_template_cannot_be_given_are_named(toml: Any, text: str, words: str) -> None:
    with pytest.raises(SettingsError, match=r"^model.chat_template_kwargs = ") as caught:
        load(toml(f"[model]\nchat_template_kwargs = {text}\n"))
    assert words in str(caught.value)
    assert len(str(caught.value)) < 500


def test_broken_json_in_a_list_variable_is_said_to_be_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGED_DEVICE__GROUPS", '["a"')
    assert "device.groups" in fault()
    assert "not a JSON list" in fault()


def test_broken_toml_is_named_with_file_and_line(toml: Any) -> None:
    path = toml("[mqtt]\nhost = broker\n")
    assert re.match(rf"{re.escape(str(path))}: not valid TOML: .*line 2", fault(path))


def test_a_named_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    assert fault(tmp_path / "none.toml") == f"{tmp_path}/none.toml: there is no such file"


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    assert fault(tmp_path) == f"{tmp_path}: cannot be read: Is a directory"


def test_a_file_that_this_user_may_not_read_says_what_would_help(toml: Any) -> None:
    path, user = toml("drain_seconds = 1\n"), os.geteuid()
    path.chmod(0)
    os.seteuid(user or 65534)  # root may read everything
    try:
        assert fault(path).startswith(f"{path}: this user may not read it: use sudo, or ")
    finally:
        os.seteuid(user)


def test_a_file_that_is_not_text_says_so(tmp_path: Path) -> None:
    (tmp_path / "edged.toml").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in fault(tmp_path / "edged.toml")


@pytest.mark.parametrize(
    "text",
    [
        '[mqtt]\npassword = ["hunter2"]',
        '[mqtt]\npassword = "hunter2"',
        '[mqtt]\nusername = "u"\npassword = "hunter2"\npassword_file = "/p"',
        '[mqtt]\npasword = "hunter2"',
        '[mqtt.password]\nvalue = "hunter2"',
        'mqtt = "password=hunter2"',
    ],
)
def test_no_error_shows_a_secret(toml: Any, text: str) -> None:
    path = toml(text)
    with pytest.raises(SettingsError) as caught:
        load(path)
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(caught.value)


def test_a_password_is_masked_where_settings_are_shown(toml: Any) -> None:
    loaded = load(toml('[mqtt]\nusername = "u"\npassword = "hunter2"'))
    assert shown(loaded)["mqtt.password"] == "********"
    assert "hunter2" not in repr(loaded) + json.dumps(describe(loaded))
    assert loaded.settings.mqtt.read_password() == "hunter2"


def test_the_password_file_is_read_anew_each_time(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    loaded = load(None, {"mqtt": {"username": "u", "password_file": str(secret)}})
    for password in ("first", "second"):
        secret.write_text(password + "\n")
        assert loaded.settings.mqtt.read_password() == password


def test_an_empty_or_missing_password_file_is_named(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    mqtt = load(None, {"mqtt": {"username": "u", "password_file": str(secret)}}).settings.mqtt
    with pytest.raises(SettingsError, match=r"mqtt.password_file = .*No such file"):
        mqtt.read_password()
    secret.write_text("\n")
    with pytest.raises(SettingsError, match="first line must be the password"):
        mqtt.read_password()


def test_the_first_line_of_the_password_file_is_the_password(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    mqtt = load(None, {"mqtt": {"username": "u", "password_file": str(secret)}}).settings.mqtt
    for text, password in (("a\r\nb\r\n", "a"), ("a\x0cb", "a\x0cb"), ("a b\n\n", "a b"), ("a\u2028b", "a\u2028b")):
        secret.write_bytes(text.encode())
        assert mqtt.read_password() == password


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xef\xbb\xbfhunter2\n", "begins with a byte order mark"),
        (b"hunter2 \n", "begins or ends with white space"),
        (b"\thunter2", "begins or ends with white space"),
        (b"\xff\xfeh\0", "not UTF-8 text"),
    ],
)
def test_a_password_file_that_an_editor_damaged_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    secret = tmp_path / "password"
    secret.write_bytes(content)
    mqtt = load(None, {"mqtt": {"username": "u", "password_file": str(secret)}}).settings.mqtt
    with pytest.raises(SettingsError, match=says) as caught:
        mqtt.read_password()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(("mqtt", "port"), [({}, 1883), ({"tls": True}, 8883), ({"tls": True, "port": 1883}, 1883)])
def test_the_port_follows_tls_unless_it_is_set(mqtt: dict[str, Any], port: int) -> None:
    assert load(None, {"mqtt": mqtt}).settings.mqtt.effective_port == port


def test_the_shipped_example_is_what_the_settings_say() -> None:
    assert (REPOSITORY / "deploy" / "edged.example.toml").read_text("utf-8") == example_toml()


def test_the_example_as_it_is_changes_nothing(toml: Any) -> None:
    assert load(toml(example_toml())).settings == load().settings


def test_every_key_of_the_example_is_valid_once_uncommented(toml: Any) -> None:
    text = re.sub(r"^#(?! )", "", example_toml(), flags=re.M)
    text = re.sub(r"^password_file = .*$", "", text, flags=re.M).replace("tls = false", "tls = true")
    path = toml(text)
    loaded = load(path)
    not_from_file = {key for key, origin in loaded.origins.items() if origin != str(path)}
    assert not_from_file == {"mqtt.password_file"}


def test_every_setting_has_a_description_of_one_sentence() -> None:
    for key, _, _, about in describe(load()):
        assert about.endswith("."), key
        assert len(about) > 10, key


class TestCommand:
    def run(self, *arguments: str) -> Any:
        app = typer.Typer()
        app.command()(config)
        return CliRunner().invoke(app, list(arguments))

    def test_json_names_value_and_origin_of_each_key(self, toml: Any) -> None:
        path = toml("[model]\nrows = 4\n")
        found = json.loads(self.run("--config", str(path), "--json").stdout)
        assert found["model.rows"]["value"] == 4
        assert found["model.rows"]["from"] == str(path)
        assert set(found) == set(shown(load()))

    def test_a_wrong_setting_is_one_line_on_stderr_and_exit_code_78(
        self, toml: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(typer.Exit) as caught:
            config(config_file=toml("[mqtt]\nport = 0"))
        assert caught.value.exit_code == 78
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("edged: mqtt.port = 0 (from ")
        assert printed.err.count("\n") == 1

    def test_each_setting_is_one_whole_line(self, toml: Any) -> None:
        path = toml(f'state_dir = "/{"x" * 150}"\n[mqtt]\nhost = "broker"')
        lines = self.run("--config", str(path)).stdout.splitlines()
        assert [line.split()[0] for line in lines] == list(KEYS)
        told = [" ".join(line.split()) for line in lines]
        assert f"state_dir = /{'x' * 150} (from {path})" in told
        assert f"mqtt.host = broker (from {path})" in told
        assert {"mqtt.tls = false (from default)", "mqtt.port is not set"} <= set(told)

    def test_example_prints_the_example_file(self) -> None:
        assert self.run("--example").stdout == example_toml()
