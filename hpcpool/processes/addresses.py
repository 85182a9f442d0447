"""The addresses of this host under which another one may reach it. Nobody outside is asked: the interfaces know."""

from __future__ import annotations

import ipaddress
import socket


def own_addresses() -> list[str]:
    """Return the addresses of all interfaces that are up, as text for `tcp://host:port`; loopback last.

    Loopback is there for managers on this very host; on another one it leads to nobody who has the right key.
    """
    import psutil  # the interchange must be up quickly, and a pool on one machine has no use for it

    found: list[ipaddress.IPv4Address | ipaddress.IPv6Address] = []
    states = psutil.net_if_stats()
    for interface, addresses in psutil.net_if_addrs().items():
        if interface in states and not states[interface].isup:
            continue
        for address in addresses:
            # A link-local address means something on one link only, and says by its scope on which.
            if address.family in (socket.AF_INET, socket.AF_INET6) and "%" not in address.address:
                found.append(ipaddress.ip_address(address.address))
    usable = [address for address in found if not address.is_link_local]
    usable.sort(key=lambda address: (address.is_loopback, address.version))
    return [str(address) if address.version == 4 else f"[{address}]" for address in usable]
