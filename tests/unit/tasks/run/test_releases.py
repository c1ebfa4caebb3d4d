"""The release that should serve, as the store has it."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest

from feature_jobs.errors import BadInputError, CorruptError, ParentMissingError
from serving.server import Addresses, Server
from tests.unit.serving.shop import DAYS, Shop, shared_shop

pytestmark = pytest.mark.slow


@pytest.fixture
def shop(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Shop:
    return shared_shop(tmp_path_factory).copy(tmp_path / "shop")


def test_the_champion_with_the_newest_state(shop: Shop) -> None:
    releases = shop.releases
    first = releases.newest()
    assert (first.version, first.ds, first.state) == ("1", DAYS[0], DAYS[1])
    assert releases.newest() is first
    shop.promote(2)
    second = releases.newest()
    assert (second.version, second.ds, second.state) == ("2", DAYS[1], DAYS[1])
    assert second.export != first.export and second.online == first.online
    shop.promote(1, kind="rollback")
    assert releases.newest() == first
    # An operator restores an older log from a backup.
    log = sorted((Path(shop.store.url) / "champion").glob("*.json"))
    log[-1].unlink()
    assert releases.newest() == second


def test_a_log_whose_records_do_not_follow_each_other(shop: Shop) -> None:
    releases = shop.releases
    releases.newest()
    shop.promote(2)
    record = Path(shop.store.url) / "champion" / "000001.json"
    record.chmod(0o644)
    record.write_text(record.read_text().replace('"1"', '"7"'))
    with pytest.raises(CorruptError, match="does not follow the record before"):
        releases.newest()


def test_nothing_to_serve(shop: Shop) -> None:
    store = Path(shop.store.url)
    for ds in DAYS:
        shutil.rmtree(store / "g0000" / ds / "materialize")
    with pytest.raises(ParentMissingError, match=f"no state of features is committed for {DAYS[0]} or later.*make it:"):
        shop.releases.newest()
    shutil.rmtree(store / "champion")
    with pytest.raises(ParentMissingError, match="no version was promoted yet; run some days"):
        shop.releases.newest()


@pytest.mark.parametrize("option", ["--http", "--grpc"])
def test_an_address_that_is_taken(shop: Shop, option: str) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # as another server of gRPC does
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = taken.getsockname()
        addresses = Addresses(address) if option == "--http" else Addresses(("127.0.0.1", 0), address)
        server = Server(addresses, 1, shop.releases.newest, print)
        with pytest.raises(BadInputError, match=rf"{option} 127.0.0.1:{address[1]}: .*in use.*; choose another"):
            server.run()
