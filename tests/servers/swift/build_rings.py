"""Write the three rings of a store with one disk; runs in Swift's own environment: ROOT KIND=PORT ..."""

import sys

from swift.common.ring import RingBuilder

root, *servers = sys.argv[1:]
for server in servers:
    kind, _, port = server.partition("=")
    builder = RingBuilder(4, 1, 0)  # 16 partitions, one replica
    builder.add_dev(
        {
            "id": 0,
            "region": 1,
            "zone": 1,
            "weight": 1.0,
            "ip": "127.0.0.1",
            "port": int(port),
            "replication_ip": "127.0.0.1",
            "replication_port": int(port),
            "device": "disk",
            "meta": "",
        }
    )
    builder.rebalance()
    builder.get_ring().save(f"{root}/{kind}.ring.gz")
