"""Named policies: what may be done about an incident without a person, and how.

A policy belongs to a task. Without an enabled one every cure waits for a person's approval; a person's approval uses
the settings of the task's policy if there is one, enabled or not, and the defaults below otherwise.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from skerry_contract.errors import WireError
from skerry_contract.identifiers import check_name
from skerry_server.audit import ledger
from skerry_server.clock import now_ms
from skerry_server.errors import InvalidRequestError, NotFoundError
from skerry_server.federation.settings import parse_settings as parse_campaign
from skerry_server.incidents.policy_settings import parse_settings
from skerry_server.store.tables import Policy
from skerry_server.training.service import known_task


def set_policy(
    session: Session, *, name: str, task: str, settings: dict[str, Any], enabled: bool, actor: str
) -> Policy:
    """Create or replace a policy.

    Args:
        session: In a transaction; the caller commits.
        name: Its name, as in ``skerry_contract.identifiers``.
        task: Task whose incidents it answers.
        settings: Fields of :class:`PolicySettings`; left out ones take their defaults.
        enabled: Whether it may act without a person.
        actor: Who asks, for the audit ledger.

    Raises:
        InvalidRequestError: The name or a setting is not acceptable, among them those of the campaign.
    """
    try:
        check_name(name, field="name")
        check_name(task, field="task")
    except WireError as error:
        raise InvalidRequestError(error.field, expected=error.expected, got=error.got) from error
    chosen = parse_settings(settings)
    if chosen.campaign:
        parse_campaign(known_task(task).default_campaign, chosen.campaign_settings(), strategy=chosen.strategy)
    policy = session.get(Policy, name)
    if policy is None:
        policy = Policy(name=name, task=task, created_ms=now_ms())
        session.add(policy)
    policy.task, policy.settings, policy.enabled = task, dict(settings), enabled
    ledger.append(
        session,
        actor=actor,
        action="policy.set",
        subject=name,
        detail={"task": task, "enabled": enabled, "settings": settings},
    )
    session.flush()
    return policy


def list_policies(session: Session, *, task: str = "") -> list[Policy]:
    """Policies by name; an empty task selects every one."""
    query = sa.select(Policy).order_by(Policy.name)
    return list(session.scalars(query.where(Policy.task == task) if task else query))


def get_policy(session: Session, name: str) -> Policy:
    """One policy; raises :class:`NotFoundError`."""
    policy = session.get(Policy, name)
    if policy is None:
        raise NotFoundError("policy", name)
    return policy


def policy_for(session: Session, task: str) -> Policy | None:
    """The policy that answers a task's incidents: the first enabled one by name, else the first one."""
    policies = list_policies(session, task=task)
    return next((policy for policy in policies if policy.enabled), policies[0] if policies else None)
