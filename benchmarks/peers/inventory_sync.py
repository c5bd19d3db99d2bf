"""The peer of inventory: grpc's sync server with a thread pool, SQLAlchemy (psycopg), rows locked per order.

DATABASE_URL=postgresql+psycopg://... python inventory_sync.py PORT
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import grpc
from sqlalchemy import BigInteger, Integer, Uuid, create_engine, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from market.contracts import inventory_pb2, inventory_pb2_grpc


class Base(DeclarativeBase):
    pass


class Stock(Base):
    __tablename__ = "inventory"
    product_id: Mapped[UUID] = mapped_column(primary_key=True)
    quantity: Mapped[int] = mapped_column(BigInteger)


class Reservation(Base):
    __tablename__ = "reservations"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    status: Mapped[str]
    product_ids: Mapped[list[UUID]] = mapped_column(ARRAY(Uuid()))
    quantities: Mapped[list[int]] = mapped_column(ARRAY(Integer()))


class Servicer(inventory_pb2_grpc.InventoryServicer):
    def __init__(self, sessions: "sessionmaker[Session]") -> None:
        self.sessions = sessions

    def Reserve(self, request, context):
        """Reserve all items or none, in one transaction, with rows locked in order of product id."""
        reservation_id = UUID(request.reservation_id)
        wanted = {UUID(item.product_id): item.quantity for item in request.items}
        products = sorted(wanted)
        with self.sessions.begin() as session:
            if session.get(Reservation, reservation_id) is not None:
                return inventory_pb2.ReserveResponse(reserved=True)
            query = select(Stock).where(Stock.product_id.in_(products)).order_by(Stock.product_id).with_for_update()
            stock = {row.product_id: row for row in session.scalars(query)}
            short = [p for p in products if p not in stock or stock[p].quantity < wanted[p]]
            if short:
                shortages = [
                    inventory_pb2.Shortage(
                        product_id=str(p), wanted=wanted[p], left=stock[p].quantity if p in stock else 0
                    )
                    for p in short
                ]
                return inventory_pb2.ReserveResponse(reserved=False, shortages=shortages)
            for product in products:
                stock[product].quantity -= wanted[product]
            session.add(
                Reservation(
                    id=reservation_id, status="reserved", product_ids=products, quantities=[wanted[p] for p in products]
                )
            )
        return inventory_pb2.ReserveResponse(reserved=True)

    def CheckAvaliable(self, request, context):
        ids = [UUID(product_id) for product_id in request.product_ids]
        with self.sessions() as session:
            stock = dict(
                session.execute(select(Stock.product_id, Stock.quantity).where(Stock.product_id.in_(ids))).all()
            )
        items = [
            inventory_pb2.Availability(product_id=str(i), available=stock.get(i, 0) > 0, quantity=stock.get(i, 0))
            for i in ids
        ]
        return inventory_pb2.CheckAvaliableResponse(items=items)


def main() -> None:
    engine = create_engine(os.environ["DATABASE_URL"], pool_size=10, max_overflow=0)
    server = grpc.server(ThreadPoolExecutor(10))
    inventory_pb2_grpc.add_InventoryServicer_to_server(Servicer(sessionmaker(engine)), server)
    server.add_insecure_port(f"127.0.0.1:{sys.argv[1]}")
    server.start()
    print("ready", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
