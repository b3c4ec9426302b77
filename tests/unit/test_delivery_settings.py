"""Settings of deliveries: all that is wrong is said at once, and a secret never."""

from __future__ import annotations

import base64
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from pydantic import SecretStr

from aioflow import ConfigError, Discard, delivery
from aioflow.delivery.settings import load_settings
from aioflow.delivery.signing import HOW_TO_MAKE, SECRET_FILE, Signer, secret_of_folder, webhook_id_of

GOOD = "whsec_" + base64.b64encode(b"a" * 32).decode()
OTHER = "whsec_" + base64.b64encode(b"b" * 24).decode()
SHORT = "whsec_" + base64.b64encode(b"c" * 16).decode()


def test_lists_come_with_commas_or_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOFLOW_DELIVERY_SECRETS", f" {GOOD}, {OTHER} ")
    monkeypatch.setenv("AIOFLOW_DELIVERY_ALLOW", "127.0.0.1:8080 10.0.0.0/8,hooks.internal")
    monkeypatch.setenv("AIOFLOW_DELIVERY_PORTS", "443")
    monkeypatch.setenv("AIOFLOW_DELIVERY_TIMEOUT", "")
    settings = load_settings()
    assert [secret.get_secret_value() for secret in settings.secrets] == [GOOD, OTHER]
    assert settings.allow == ("127.0.0.1:8080", "10.0.0.0/8", "hooks.internal")
    assert (settings.ports, settings.timeout) == ((443,), 15.0)
    delivery.check_url("http://hooks.internal:1/")
    assert GOOD not in repr(settings)
    assert GOOD not in repr(Signer([GOOD]))


def test_a_check_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(delivery.UrlRefused):
        delivery.check_url("http://hooks.internal/")
    monkeypatch.setenv("aioflow_delivery_allow", "hooks.internal")
    delivery.check_url("http://hooks.internal/")
    monkeypatch.delenv("aioflow_delivery_allow")
    with pytest.raises(delivery.UrlRefused):
        delivery.check_url("http://hooks.internal/")


def test_every_wrong_one_is_named_and_no_secret_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {
        "SECRETS": f"{GOOD},{SHORT}",
        "TIMEOUT": "0",
        "ATTEMPTS": "11",
        "BASE": "-1",
        "LONGEST": "x",
        "CONCURRENCY": "0",
        "PER_HOST": "many",
        "ALLOW": "127.1",
        "HTTP": "perhaps",
        "PORTS": "443,99999",
    }
    for name, value in wrong.items():
        monkeypatch.setenv(f"AIOFLOW_DELIVERY_{name}", value)
    with pytest.raises(ConfigError) as error:
        delivery.check_url("https://example.com/")
    for name in wrong:
        assert f"AIOFLOW_DELIVERY_{name}: " in str(error.value)
    assert "secret 2 is not whsec_" in str(error.value)
    everything = "".join(traceback.format_exception(error.value))
    assert GOOD not in everything
    assert SHORT not in everything


@pytest.mark.parametrize(
    "secret", ["hunter2", SHORT, GOOD.removeprefix("whsec_"), "whsec_", "whsec_!!!!", "whsk_" + GOOD]
)
def test_what_is_no_secret_is_refused(secret: str) -> None:
    with pytest.raises(ValueError, match="secret 1 is not whsec_") as error:
        delivery.DeliverySettings(secrets=(SecretStr(secret),))
    assert secret not in str(error.value) or secret == "whsec_"


def test_the_line_that_makes_a_secret_makes_one() -> None:
    command = HOW_TO_MAKE.replace("python", sys.executable, 1)
    made = subprocess.run(command, shell=True, capture_output=True, text=True, check=True).stdout.strip()
    assert delivery.DeliverySettings(secrets=(SecretStr(made),)).secrets[0].get_secret_value() == made


def test_the_secret_of_a_folder_is_made_once_and_is_its_owners(tmp_path: Path) -> None:
    made = secret_of_folder(tmp_path / "data")
    assert secret_of_folder(tmp_path / "data") == made
    assert [path.name for path in (tmp_path / "data").iterdir()] == [SECRET_FILE]
    assert (tmp_path / "data" / SECRET_FILE).stat().st_mode & 0o777 == 0o600
    delivery.DeliverySettings(secrets=(SecretStr(made),))
    (tmp_path / "data" / SECRET_FILE).write_text("nonsense")
    with pytest.raises(ConfigError, match="holds no secret"):
        secret_of_folder(tmp_path / "data")
    with pytest.raises(ConfigError, match="cannot be had"):
        secret_of_folder(tmp_path / "data" / SECRET_FILE)


@pytest.mark.parametrize("job_id", ["0192f0c1a2b37d4e8f90123456789abc", "order-1", "factors.compute-0-7"])
def test_ids_that_are_signed(job_id: str) -> None:
    assert webhook_id_of(job_id) == job_id


@pytest.mark.parametrize("job_id", ["a.1", "factors.compute-0", "\u00fc", "a b", "a\nb"])
def test_ids_that_are_not(job_id: str) -> None:
    with pytest.raises(Discard, match="cannot be a webhook-id"):
        webhook_id_of(job_id)


def test_without_the_library_one_can_emit_and_not_deliver() -> None:
    program = """
import sys
import aioflow
assert "standardwebhooks" not in sys.modules and "aioflow.delivery" not in sys.modules
sys.modules["standardwebhooks"] = None
from aioflow import ConfigError, delivery
delivery.Delivery(url="https://example.com/", type="a.b", data={})
delivery.check_url("https://example.com/")
try:
    delivery.service
except ConfigError as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install 'aioflow[delivery]'" in ran.stdout
