"""The lookup that judges a bundle on the controller."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase
from ansible_collections.colab_local.fleet.plugins.plugin_utils import bundles, judge

DOCUMENTATION = """
name: bundle
author: colab-local
short_description: Read what a bundle was made for, and refuse one that is for something else
description:
  - Reads the manifest of a bundle on the controller or on a web server, which is at the beginning of the file.
options:
  _terms:
    description: One term, a path on the controller or a URL; or none.
    type: list
    elements: str
    required: true
  environment:
    description: The environment that is wanted.
    type: str
    required: true
  engine:
    description: The engine that is wanted.
    type: str
    required: true
  checkout:
    description: The checkout whose lock is wanted.
    type: str
    required: true
  sha256:
    description: The sha256 of the bundle behind a URL.
    type: str
    default: ""
  signers:
    description: An allowed signers file of ssh-keygen; the manifest must be signed by one of them.
    type: str
    default: ""
"""
EXAMPLES = """
- name: Say what the bundle is for
  ansible.builtin.debug:
    msg: "{{ lookup('colab_local.fleet.bundle', '/srv/b.tar', environment='cpu', engine='host', checkout='/srv/c') }}"
"""
RETURN = """
_raw:
  description: What the bundle is for, its size in bytes, and the name under which hosts keep it. Empty without one.
  type: list
  elements: dict
"""


class LookupModule(LookupBase):
    """Looks a bundle up."""

    def run(self, terms: list[str], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[dict[str, Any]]:
        """Return the bundle's description; raise AnsibleLookupError if it is not what is wanted."""
        self.set_options(var_options=variables, direct=kwargs)
        get = self.get_option
        if not terms or not terms[0]:
            return [{}]
        place = str(terms[0])
        is_url = place.startswith(("http://", "https://"))
        shown = "the bundle behind colab_local_bundle_url" if is_url else f"the bundle {place}"
        try:
            bundle, manifest, signature = (
                bundles.from_url(place, get("sha256")) if is_url else bundles.from_file(place)
            )
            if get("signers") and manifest:
                bundle["signer"] = bundles.signer(manifest, signature, get("signers"))
            wrong = bundles.foreign(bundle, get("environment"), get("engine"), judge.index_digest(get("checkout")))
        except (bundles.Unusable, OSError) as problem:
            raise AnsibleLookupError(
                f"error: {shown} can't be used: {problem}; hint: python3 scripts/bundle.py --help"
            ) from None
        if wrong:
            raise AnsibleLookupError(
                f"error: the bundle was made for something else ({wrong}); hint: python3 scripts/bundle.py "
                f"--env {get('environment')} --engine {get('engine')}, or set colab_local_checkout to a checkout of "
                "the bundle's lock"
            )
        return [bundle]
