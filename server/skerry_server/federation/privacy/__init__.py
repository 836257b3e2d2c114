"""Client-level differential privacy of campaigns: settings, clipping, noise, accounting.

>>> plan = PrivacyPlan.from_settings({"mode": "central", "clip_norm": 1.0, "target_epsilon": 8.0}, rounds=10)
>>> state = plan.start(participants=100)
>>> round(state.noise_multiplier, 2), round(plan.epsilon(plan.committed(state)), 2)
(1.9, 2.11)
"""

from skerry_contract.clipping import clip_state
from skerry_server.federation.privacy.accountant import Spending, noise_multiplier_for
from skerry_server.federation.privacy.adaptive import AdaptiveClip
from skerry_server.federation.privacy.plan import PrivacyBudgetError, PrivacyPlan, PrivacyState
from skerry_server.federation.privacy.private_sum import PrivateSum
from skerry_server.federation.privacy.settings import PrivacySettings, check_compatible, parse_privacy

__all__ = [
    "AdaptiveClip",
    "PrivacyBudgetError",
    "PrivacyPlan",
    "PrivacySettings",
    "PrivacyState",
    "PrivateSum",
    "Spending",
    "check_compatible",
    "clip_state",
    "noise_multiplier_for",
    "parse_privacy",
]
