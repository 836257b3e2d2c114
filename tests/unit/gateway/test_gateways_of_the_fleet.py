"""Who becomes a gateway, what it is told, which certificate it gets, and what it makes of it on its own disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from integration.runtime.identities import new_request
from skerry_agent.errors import DeviceError
from skerry_contract.errors import WireError
from skerry_gateway import server_certificate
from skerry_gateway.config import GatewayLayout
from skerry_gateway.keeper import Keeper
from skerry_gateway.roster import RosterFile
from skerry_gateway.site_keys import SiteKeys
from skerry_gateway.status import GatewayStatus, read_state
from skerry_gateway.worker import RoundFigures
from skerry_server.api import queries, views
from skerry_server.api.paging import fetch_page
from skerry_server.context import ServerContext, open_context
from skerry_server.errors import InvalidRequestError, RefusedError, SkerryError
from skerry_server.federation.flower.node_registry import RegisteredNode, RegistryError
from skerry_server.fleet import enrollment, gateways, service
from skerry_server.fleet.authority import CertificateAuthority, utc_now
from skerry_server.store.tables import Device
from unit.gateway.site_world import document

LABELS = {"role": "gateway", "site": "plant", "gateway-address": "gw.plant.example:9443"}


@pytest.fixture
def context(prepared: Path, tmp_path: Path) -> Iterator[ServerContext]:
    folder = tmp_path / "data"
    shutil.copytree(prepared, folder)
    made = open_context(folder)
    yield made
    made.close()


def enrol(context: ServerContext, name: str, *, token: Mapping[str, str], own: Mapping[str, str] | None = None) -> None:
    with context.database.transaction() as session:
        secret = enrollment.create_token(session, context, actor="ada", labels=token)
        enrollment.enroll(session, context, token=secret, device_id=name, csr=new_request().csr, labels=own or {})
        session.get_one(Device, name).node_public_key = f"key of {name}"


def test_the_token_makes_a_gateway(context: ServerContext) -> None:
    enrol(context, "gw", token=LABELS)
    enrol(context, "press-1", token={"site": "plant"})
    with context.database.reading() as session:
        assert session.get_one(Device, "gw").kind == "gateway"
        assert session.get_one(Device, "press-1").kind == "device"
        assert service.cohort_device_ids(session, "all") == ["press-1"]


BAD_TOKENS: tuple[tuple[dict[str, str], str], ...] = (
    ({"role": "gateway", "gateway-address": "gw:9443"}, "labels.site"),
    ({"role": "gateway", "site": "plant"}, "labels.gateway-address"),
    ({**LABELS, "gateway-address": "gw"}, "labels.gateway-address"),
    ({**LABELS, "gateway-address": "gw:99999"}, "labels.gateway-address"),
)


@pytest.mark.parametrize(("labels", "field"), BAD_TOKENS, ids=[str(index) for index in range(len(BAD_TOKENS))])
def test_a_token_makes_a_whole_gateway_or_none(context: ServerContext, labels: dict[str, str], field: str) -> None:
    with context.database.transaction() as session, pytest.raises(InvalidRequestError, match=field):
        enrollment.create_token(session, context, actor="ada", labels=labels)


@pytest.mark.parametrize("own", [{"role": "gateway"}, {"gateway-address": "evil:1"}])
def test_no_device_makes_itself_a_gateway(context: ServerContext, own: dict[str, str]) -> None:
    with pytest.raises(InvalidRequestError, match="a gateway's labels in its token"):
        enrol(context, "press-1", token={"site": "plant"}, own=own)
    with context.database.reading() as session:
        assert session.get(Device, "press-1") is None


def test_the_roster_holds_the_site_and_nobody_else(context: ServerContext) -> None:
    enrol(context, "gw", token=LABELS)
    enrol(context, "press-1", token={"site": "plant"})
    enrol(context, "press-2", token={"site": "plant"})
    enrol(context, "desk-1", token={"site": "office"})
    enrol(context, "stray", token={})
    with context.database.transaction() as session:
        session.get_one(Device, "press-2").revoked = True
        report = gateways.SiteReport(connected=1, campaign_id="c", round=3, asked=2, counted=1)
        roster, digest = gateways.take_report(session, "gw", report, node_id="77")
        gateway = session.get_one(Device, "gw")
        assert (gateway.flower_node_id, gateway.online) == ("77", True)
        assert gateway.site_report == {
            "devices": 1,
            "connected": 1,
            "campaign_id": "c",
            "round": 3,
            "asked": 2,
            "counted": 1,
        }
        assert gateways.connected(gateway, at_ms=gateway.last_seen_ms + gateways.SILENT_MS)
        assert not gateways.connected(gateway, at_ms=gateway.last_seen_ms + gateways.SILENT_MS + 1)
    assert roster["devices"] == [{"device_id": "press-1", "node_key": "key of press-1"}]
    assert (roster["site"], roster["address"], digest) == ("plant", "gw.plant.example:9443", gateways.digest_of(roster))


def test_api_and_filters_show_a_gateway_as_one(context: ServerContext) -> None:
    enrol(context, "gw", token=LABELS)
    enrol(context, "press-1", token={"site": "plant"})
    with context.database.transaction() as session:
        report = gateways.SiteReport(connected=1, campaign_id="campaign-7", round=3, asked=9, counted=8)
        gateways.take_report(session, "gw", report, node_id="77")
    with context.database.reading() as session:
        page = fetch_page(session, queries.DEVICES, page_size=10, page_token="", filters={"kind": "gateway"})
        (shown,) = (views.device(row, None) for row in page.items)
        assert views.device(session.get_one(Device, "press-1"), None).site is None
    assert (shown.id, shown.kind) == ("gw", "gateway")
    assert shown.site is not None
    assert shown.site.model_dump() == {
        "site": "plant",
        "address": "gw.plant.example:9443",
        "devices": 1,
        "connected": 1,
        "campaign_id": "campaign-7",
        "round": 3,
        "asked": 9,
        "counted": 8,
    }


def test_a_device_gets_neither_roster_nor_certificate(context: ServerContext) -> None:
    enrol(context, "press-1", token={"site": "plant"})
    with context.database.transaction() as session:
        with pytest.raises(RefusedError, match="no gateway"):
            gateways.take_report(session, "press-1", gateways.SiteReport(), node_id="1")
        with pytest.raises(RefusedError, match="no gateway"):
            gateways.certify(session, context, "press-1", csr=new_request().csr)


def test_the_certificate_is_a_server_s_for_the_operator_s_address(context: ServerContext) -> None:
    enrol(context, "gw", token=LABELS)
    with context.database.reading() as session:
        pem = gateways.certify(session, context, "gw", csr=new_request().csr)
    certificate = x509.load_pem_x509_certificate(pem.encode())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["gw.plant.example", "localhost"]
    usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usages) == [ExtendedKeyUsageOID.SERVER_AUTH]
    with pytest.raises(InvalidRequestError, match="a device's certificate"):
        CertificateAuthority.load(context.layout.pki).check_issued(pem.encode())


def test_no_gateway_passes_for_the_control_plane(context: ServerContext) -> None:
    config = context.config.model_copy(update={"public_names": ["fleet.example"]})
    named = ServerContext(config, context.layout, context.database, context.artifacts, context.signer)
    taken = {**LABELS, "gateway-address": "fleet.example:9443"}
    with context.database.transaction() as session, pytest.raises(InvalidRequestError, match="not the control plane"):
        enrollment.create_token(session, named, actor="ada", labels=taken)
    enrol(context, "gw", token=LABELS)
    with context.database.transaction() as session:  # also when an operator changes the label later
        session.get_one(Device, "gw").labels = taken
        with pytest.raises(InvalidRequestError, match="not the control plane"):
            gateways.certify(session, named, "gw", csr=new_request().csr)


class Api:
    """The control plane's device API without a network; away when it is told to be."""

    def __init__(self, context: ServerContext) -> None:
        self.context = context
        self.away = False
        self.asked: list[str] = []

    def site(self, action: str, body: Mapping[str, Any]) -> dict[str, Any]:
        if self.away:
            raise DeviceError("https://fleet.example cannot be reached", remedy="check the network")
        self.asked.append(action)
        with self.context.database.transaction() as session:
            try:
                if action == "certificate":
                    return {"certificate": gateways.certify(session, self.context, "gw", csr=body["csr"])}
                names = ("connected", "campaign_id", "round", "asked", "counted")
                report = gateways.SiteReport(**{name: body[name] for name in names})
                roster, digest = gateways.take_report(session, "gw", report, node_id=body["node_id"])
                return {"digest": digest, "roster": None if digest == body["roster"] else roster}
            except SkerryError as error:
                raise DeviceError(str(error), remedy="") from error


class Registry:
    """The site's SuperLink as a list."""

    def __init__(self) -> None:
        self.known: dict[str, RegisteredNode] = {}
        self.away = False

    def nodes(self) -> list[RegisteredNode]:
        if self.away:
            raise RegistryError("the SuperLink is away")
        return list(self.known.values())

    def register(self, device_id: str, public_key: bytes) -> bool:
        name = f"device/{device_id}"
        self.known[device_id] = RegisteredNode(len(self.known) + 1, public_key, name, active=True, online=True)
        return True

    def unregister(self, node_id: int) -> None:
        self.known = {name: node for name, node in self.known.items() if node.node_id != node_id}


class Kept:
    """A keeper over files and fakes."""

    def __init__(self, context: ServerContext, root: Path) -> None:
        self.layout = GatewayLayout(root)
        self.layout.authority.parent.mkdir(parents=True)
        self.layout.authority.write_bytes(context.layout.authority_certificate.read_bytes())
        self.api, self.registry = Api(context), Registry()
        self.status = GatewayStatus(self.layout.status, "gw")
        self.restarts = 0
        self.now = utc_now()
        self.keeper = self.again()

    def again(self) -> Keeper:
        """A keeper of a process that starts anew."""
        self.roster = RosterFile(self.layout.roster)
        return Keeper(
            self.layout,
            "gw",
            lambda: self.api,
            self.roster,
            SiteKeys(lambda: self.registry),
            self.status,
            now=lambda: self.now,
            restart_superlink=self.restarted,
        )

    def restarted(self) -> None:
        self.restarts += 1


@pytest.fixture
def kept(context: ServerContext, tmp_path: Path) -> Kept:
    enrol(context, "gw", token=LABELS)
    enrol(context, "press-1", token={"site": "plant"})
    enrol(context, "desk-1", token={"site": "office"})
    return Kept(context, tmp_path / "gw")


def test_a_keeper_gets_roster_certificate_and_keys(kept: Kept) -> None:
    kept.status.change(node_id="5", round=RoundFigures("c", 2, 3, 3))
    kept.keeper.step()
    kept.keeper.step()
    assert list(kept.registry.known) == ["press-1"]  # a device of another site is nobody here
    state = read_state(kept.layout.status)
    assert (state.site, state.address, state.devices, state.connected) == ("plant", LABELS["gateway-address"], 1, 1)
    assert server_certificate.fits(kept.layout, "gw.plant.example", kept.now)
    assert (kept.restarts, kept.api.asked) == (1, ["report", "certificate", "report", "report"])


def test_a_roster_holds_while_the_control_plane_is_away(kept: Kept) -> None:
    kept.keeper.step()
    kept.api.away = True
    kept.registry.known.clear()  # the site's SuperLink lost its state
    keeper = kept.again()
    keeper.step()
    assert list(kept.registry.known) == ["press-1"]
    assert list(kept.roster.roster.keys) == ["press-1"]


def test_a_device_that_leaves_the_site_is_cut_off(kept: Kept, context: ServerContext) -> None:
    kept.keeper.step()
    with context.database.transaction() as session:
        session.get_one(Device, "press-1").labels = {"site": "office"}
    kept.keeper.step()
    assert kept.registry.known == {}


def test_the_site_s_superlink_away_stops_nothing_else(kept: Kept) -> None:
    kept.registry.away = True
    kept.status.change(node_id="5")
    kept.keeper.step()
    assert list(kept.roster.roster.keys) == ["press-1"]
    assert kept.api.asked == ["report", "certificate"]
    assert told_node(kept) == "0"  # no device is sent to it
    kept.registry.away = False
    kept.keeper.step()
    assert told_node(kept) == "5"
    kept.registry.away = True
    kept.keeper.step()
    kept.keeper.step()
    assert told_node(kept) == "0"


def told_node(kept: Kept) -> str:
    with kept.api.context.database.reading() as session:
        return session.get_one(Device, "gw").flower_node_id


def test_the_certificate_is_renewed_in_the_last_third_and_for_another_address(
    kept: Kept, context: ServerContext
) -> None:
    kept.keeper.step()
    first = kept.layout.server_certificate.read_bytes()
    kept.now += timedelta(days=21)
    kept.keeper.step()
    second = kept.layout.server_certificate.read_bytes()
    with context.database.transaction() as session:
        session.get_one(Device, "gw").labels = {**LABELS, "gateway-address": "10.0.0.7:9443"}
    kept.now -= timedelta(days=21)
    kept.keeper.step()
    third = kept.layout.server_certificate.read_bytes()
    assert len({first, second, third}) == 3
    assert (kept.restarts, server_certificate.fits(kept.layout, "10.0.0.7", kept.now)) == (3, True)


def test_a_certificate_of_another_authority_is_not_taken(kept: Kept, tmp_path: Path) -> None:
    other = CertificateAuthority.create(now=utc_now())

    def certify(csr: str) -> str:
        return other.issue_gateway(csr.encode(), gateway_id="gw", names=["gw"], now=utc_now(), days=1).decode()

    with pytest.raises(server_certificate.CertificateError, match="not of the fleet's authority"):
        server_certificate.renew(kept.layout, "gw", "gw", certify)
    assert not kept.layout.server_certificate.exists()


BROKEN: tuple[tuple[str, Any], ...] = (
    ("devices", None),
    ("devices", [{"device_id": "a", "node_key": "k"}] * 2),
    ("devices", [{"device_id": "../a", "node_key": "k"}]),
    ("devices", [{"device_id": "a", "node_key": ""}]),
    ("campaigns", [{"campaign_id": "c", "quorum": 0, "grace_factor": 1, "members": ["a"]}]),
    ("campaigns", [{"campaign_id": "c", "quorum": 0.5, "grace_factor": 1, "members": ["a", "a"]}]),
    ("campaigns", [{"campaign_id": "c", "quorum": "all", "grace_factor": 1, "members": []}]),
    ("site", 3),
)


@pytest.mark.parametrize(("name", "value"), BROKEN, ids=[str(index) for index in range(len(BROKEN))])
def test_a_broken_roster_changes_nothing(tmp_path: Path, name: str, value: Any) -> None:
    path = tmp_path / "roster.json"
    kept = RosterFile(path)
    kept.replace(document("ab"), digest="1")
    before = path.read_bytes()
    with pytest.raises(WireError):
        kept.replace({**document("ab"), name: value}, digest="2")
    assert (kept.roster.digest, path.read_bytes()) == ("1", before)
    path.write_bytes(b"{")
    assert RosterFile(path).roster.digest == ""
