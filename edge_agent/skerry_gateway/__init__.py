"""The gateway of a site: it sums for its devices and looks like one heavier client to the control plane.

Downstream it runs a SuperLink of its own, which the site's devices join; upstream it is a node of the control plane's.
It is built of both: the server's round loop and arithmetic, the agent's node, identity and journal.
"""
