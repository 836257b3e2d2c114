"""``skerry device``, ``skerry cohort`` and ``skerry token``."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from skerry_contract.site import ADDRESS_LABEL, GATEWAY_ROLE, ROLE_LABEL, SITE_LABEL
from skerry_server.cli.command import Limit, Pairs, Reason, Shell, command, given, group, parse_pairs
from skerry_server.cli.output import Document, Fields, age, moment, pairs, percent
from skerry_server.errors import NotFoundError

device = group("device", help="Devices: what runs where, labels, enrolment.")
gateway = group("gateway", help="Gateways: each sums the training of the devices of its site.")
cohort = group("cohort", help="Cohorts: named sets of devices, by their labels.")
token = group("token", help="API tokens of operators and programs.")

DeviceId = Annotated[str, typer.Argument(metavar="DEVICE", help="Identifier of the device.")]
TokenName = Annotated[str, typer.Argument(metavar="NAME", help="Who uses the token; the actor in the audit ledger.")]


def presence(row: Document) -> str:
    """online, offline or revoked."""
    if row["revoked"]:
        return "revoked"
    return "online" if row["online"] else "offline"


def _update(row: Document) -> str:
    if row["update_status"] == "downloading" and row["chunks_total"]:
        return f"downloading {row['chunks_done'] * 100 // row['chunks_total']} %"
    return str(row["update_status"])


def _p99(row: Document) -> str:
    latency = row["health"].get("latency_p99_us")
    return f"{latency / 1000:.2f} ms" if latency else ""


def _certificate(row: Document) -> str:
    """How long the certificate lasts."""
    left_ms = row["certificate_not_after_ms"] - int(time.time() * 1000)
    if row["revoked"] or not row["certificate_not_after_ms"]:
        return ""
    return f"{left_ms // 86_400_000} d" if left_ms > 0 else "ended"


_DEVICE: Fields = {
    "device": lambda row: row["id"],
    "presence": presence,
    "seen": lambda row: age(row["last_seen_ms"]),
    "release": lambda row: row["active_release"],
    "variant": lambda row: row["active_variant"],
    "update": _update,
    "labelled": lambda row: row["labelled_samples"],
    "accuracy": lambda row: percent(row["accuracy"] and row["accuracy"]["value"]),
    "p99": _p99,
    "certificate": _certificate,
}
_DEVICE_DETAILS: Fields = {
    **_DEVICE,
    "class": lambda row: row["device_class"],
    "agent": lambda row: row["agent_version"],
    "labels": lambda row: pairs(row["labels"]),
    "wanted": lambda row: row["desired"]["release"],
    "told": lambda row: "yes" if row["desired"]["published"] else "not yet",
    "target": lambda row: row["target_release"],
    "detail": lambda row: row["update_detail"],
    "stays out of campaigns": lambda row: row["ineligible_reason"],
    "enrolled": lambda row: moment(row["enrolled_ms"]),
    "certificate ends": lambda row: moment(row["certificate_not_after_ms"]),
}


def _last_round(row: Document) -> str:
    site = row["site"]
    return f"{site['counted']} of {site['asked']} in round {site['round']}" if site["campaign_id"] else ""


_GATEWAY: Fields = {
    "gateway": lambda row: row["id"],
    "presence": presence,
    "seen": lambda row: age(row["last_seen_ms"]),
    "site": lambda row: row["site"]["site"],
    "address": lambda row: row["site"]["address"],
    "devices": lambda row: f"{row['site']['connected']} of {row['site']['devices']}",
    "last round": _last_round,
    "certificate": _certificate,
}
_COHORT: Fields = {
    "name": lambda row: row["name"],
    "id": lambda row: row["id"],
    "devices": lambda row: row["device_count"],
    "selector": lambda row: pairs(row["selector"]) or "every device",
}
_TOKEN: Fields = {
    "name": lambda row: row["name"],
    "role": lambda row: row["role"],
    "made": lambda row: moment(row["created_ms"]),
    "state": lambda row: "revoked" if row["revoked"] else "valid",
}
_NEW_TOKEN: Fields = {
    "name": lambda row: row["name"],
    "role": lambda row: row["role"],
    "token": lambda row: row["token"],
}


@command(device, "list", example="skerry device list --online --where site=north")
def list_devices(
    shell: Shell,
    limit: Limit = 1000,
    online: Annotated[bool | None, typer.Option("--online/--offline", help="Only these.")] = None,
    where: Annotated[str, typer.Option("--where", metavar="NAME=VALUE", help="Only devices with this label.")] = "",
    cohort: Annotated[str, typer.Option("--cohort", help="Only devices of this cohort.")] = "",
    release: Annotated[str, typer.Option("--release", help="Only devices that run it.")] = "",
    status: Annotated[str, typer.Option("--status", help="Only devices in this update status.")] = "",
) -> None:
    """List devices."""
    filters = given(online=online, label=where, cohort=cohort, active_release=release, update_status=status)
    rows = shell.api.items("devices", limit=limit, **filters)
    shell.out.rows(rows, _DEVICE, empty="no devices; make a token with `skerry device token` and enrol one")


@command(device, "show", example="skerry device show press-07 --json")
def show_device(shell: Shell, device_id: DeviceId) -> None:
    """Show a device."""
    shell.out.details(shell.api.get("devices", device_id), _DEVICE_DETAILS)


@command(device, "label", example="skerry device label press-07 --label site=north --label line=2")
def label_device(shell: Shell, device_id: DeviceId, label: Pairs = None) -> None:
    """Replace the labels of a device; without --label it has none afterwards."""
    labels = parse_pairs(label, option="--label")
    shell.out.details(shell.api.put("devices", device_id, "labels", body={"labels": labels}), _DEVICE_DETAILS)


@command(device, "revoke", example="skerry device revoke press-07 --reason stolen")
def revoke_device(shell: Shell, device_id: DeviceId, reason: Reason = "") -> None:
    """Take a device's access away; what it reported stays."""
    document = shell.api.post("devices", device_id, "revoke", body={"reason": reason})
    shell.out.details(document, _DEVICE_DETAILS)


def enroll_command(row: Document) -> str:
    """What to type on the device."""
    return f"skerry-agent enroll --server {row['server']} --token {row['token']} --device-id NAME"


@command(device, "token", example="skerry device token --ttl 600 --label site=north")
def enrollment_token(
    shell: Shell,
    ttl: Annotated[int, typer.Option("--ttl", min=60, help="Seconds until it expires.")] = 3600,
    label: Pairs = None,
) -> None:
    """Make a single-use enrolment token. The secret is printed once."""
    body = {"ttl_s": ttl, "labels": parse_pairs(label, option="--label")}
    document = shell.api.post("enrollment-tokens", body=body)
    document = document | {"command": enroll_command(document)}
    shell.out.details(
        document,
        {
            "token": lambda row: row["token"],
            "expires": lambda row: moment(row["expires_ms"]),
            "labels": lambda row: pairs(row["labels"]),
        },
    )
    if not shell.out.as_json:
        shell.out.say("on the device:")
        shell.out.say(document["command"])


@command(gateway, "list", example="skerry gateway list --where site=plant-a")
def list_gateways(
    shell: Shell,
    limit: Limit = 1000,
    where: Annotated[str, typer.Option("--where", metavar="NAME=VALUE", help="Only gateways with this label.")] = "",
) -> None:
    """List gateways, with the devices of their last round."""
    rows = shell.api.items("devices", limit=limit, **given(kind="gateway", label=where))
    shell.out.rows(rows, _GATEWAY, empty="no gateways; make a token with `skerry gateway token` and enrol one")


@command(gateway, "show", example="skerry gateway show gw-plant-a --json")
def show_gateway(shell: Shell, gateway_id: Annotated[str, typer.Argument(metavar="GATEWAY")]) -> None:
    """Show a gateway."""
    document = shell.api.get("devices", gateway_id)
    if document["site"] is None:
        raise NotFoundError("gateway", gateway_id)
    shell.out.details(document, {**_GATEWAY, "campaign": lambda row: row["site"]["campaign_id"]})


@command(gateway, "token", example="skerry gateway token --site plant-a --address gw.plant-a.example:9443")
def gateway_token(
    shell: Shell,
    site: Annotated[str, typer.Option("--site", help="Devices with the label site=SITE are summed for.")],
    address: Annotated[str, typer.Option("--address", help="host:port at which those devices reach it.")],
    ttl: Annotated[int, typer.Option("--ttl", min=60, help="Seconds until it expires.")] = 3600,
) -> None:
    """Make a single-use token that makes a gateway. The secret is printed once."""
    labels = {ROLE_LABEL: GATEWAY_ROLE, SITE_LABEL: site, ADDRESS_LABEL: address}
    document = shell.api.post("enrollment-tokens", body={"ttl_s": ttl, "labels": labels})
    document = document | {"command": enroll_command(document).replace("skerry-agent", "skerry-gateway", 1)}
    shell.out.details(document, {"token": lambda row: row["token"], "expires": lambda row: moment(row["expires_ms"])})
    if not shell.out.as_json:
        shell.out.say("on the gateway:")
        shell.out.say(document["command"])


@command(cohort, "list", example="skerry cohort list")
def list_cohorts(shell: Shell, limit: Limit = 1000) -> None:
    """List cohorts."""
    shell.out.rows(shell.api.items("cohorts", limit=limit), _COHORT, empty="no cohorts")


@command(cohort, "show", example="skerry cohort show north")
def show_cohort(shell: Shell, name: Annotated[str, typer.Argument(metavar="COHORT")]) -> None:
    """Show a cohort, by name or identifier."""
    shell.out.details(shell.api.get("cohorts", name), _COHORT)


@command(cohort, "create", example="skerry cohort create north --label site=north")
def create_cohort(
    shell: Shell, name: Annotated[str, typer.Argument(help="a-z, 0-9 and -.")], label: Pairs = None
) -> None:
    """Make a cohort of the devices whose labels contain every given pair."""
    body = {"name": name, "selector": parse_pairs(label, option="--label")}
    shell.out.details(shell.api.post("cohorts", body=body), _COHORT)


@command(token, "list", example="skerry token list")
def list_tokens(shell: Shell, limit: Limit = 1000) -> None:
    """List API tokens, without their secrets."""
    shell.out.rows(shell.api.items("api-tokens", limit=limit), _TOKEN, empty="no tokens")


@command(token, "create", example="skerry token create ada --role approver")
def create_token(
    shell: Shell,
    name: TokenName,
    role: Annotated[str, typer.Option("--role", help="viewer, operator, approver or admin.")] = "viewer",
) -> None:
    """Make an API token. The secret is printed once."""
    document = shell.api.post("api-tokens", body={"name": name, "role": role})
    shell.out.details(document, _NEW_TOKEN)


@command(token, "revoke", example="skerry token revoke ada")
def revoke_token(shell: Shell, name: TokenName) -> None:
    """Make an API token useless."""
    shell.api.post("api-tokens", name, "revoke")
    if shell.out.as_json:
        shell.out.document({"name": name, "revoked": True})
    else:
        shell.out.say(f"{name} is revoked")
