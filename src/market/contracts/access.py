"""Who may do what: one table of every operation that a client, a service or an operator can call.

The services enforce their part of it, the OpenAPI documents and docs/security.md show it, and tests/authorization
compares it, role by role, with what the services do. An operation without an entry cannot be called.

A person without a role of the shop is a buyer. A caller with several roles has the widest permission of these. The
types are in market.kit.auth: the kit enforces the table without knowing the contracts.
"""

from __future__ import annotations

from collections.abc import Mapping

from market.kit.auth.permissions import Access, Permission

NO, OWN, YES = Permission.NO, Permission.OWN, Permission.YES

EVERYBODY = Access(anonymous=YES, buyer=YES, merchant=YES, operator=YES, service=YES)
CHANGE_PRODUCTS = Access(anonymous=NO, buyer=NO, merchant=YES, operator=NO, service=NO)
SEE_STOCK = Access(anonymous=NO, buyer=NO, merchant=YES, operator=NO, service=NO)
# Buyers place orders for themselves, merchants for anybody.
PLACE_ORDERS = Access(anonymous=NO, buyer=OWN, merchant=YES, operator=NO, service=NO)
READ_ORDERS = Access(anonymous=NO, buyer=OWN, merchant=YES, operator=YES, service=NO)
CANCEL_ORDERS = Access(anonymous=NO, buyer=OWN, merchant=YES, operator=NO, service=NO)
# Merchants may see them, to inform their customers; only operators may replay or drop them.
SEE_DEAD_LETTERS = Access(anonymous=NO, buyer=NO, merchant=YES, operator=YES, service=NO)
# What could not be sold, and which orders are unfinished.
SEE_PROBLEMS = Access(anonymous=NO, buyer=NO, merchant=YES, operator=YES, service=NO)
OPERATE = Access(anonymous=NO, buyer=NO, merchant=NO, operator=YES, service=NO)


def _only(*callers: str) -> Access:
    """Return the access to a gRPC method that only these services may call."""
    service = YES if callers else NO
    return Access(anonymous=NO, buyer=NO, merchant=NO, operator=NO, service=service, callers=frozenset(callers))


# REST routes, by their key in `market.kit.http.edge`. A query that requires more than its route has its own entry.
PRODUCTS: Mapping[str, Access] = {
    "GET /api/product/{id}": EVERYBODY,
    "GET /api/product/{id}?stock=true": SEE_STOCK,
    "GET /api/product": EVERYBODY,
    "GET /api/product?stock=true": SEE_STOCK,
    "POST /api/product": CHANGE_PRODUCTS,
    "PUT /api/product": CHANGE_PRODUCTS,
    "DELETE /api/product/{id}": CHANGE_PRODUCTS,
}
ORDERS: Mapping[str, Access] = {
    "POST /api/order": PLACE_ORDERS,
    "GET /api/order/{id}": READ_ORDERS,
    "GET /api/order": READ_ORDERS,
    "DELETE /api/order/{id}": CANCEL_ORDERS,
    "GET /api/shortages": SEE_PROBLEMS,
    "GET /api/unfinished-orders": SEE_PROBLEMS,
    "POST /api/unfinished-orders/{id}/retry": OPERATE,
}
NOTIFICATIONS: Mapping[str, Access] = {
    "GET /api/dead-letters": SEE_DEAD_LETTERS,
    "POST /api/dead-letters/{id}/replay": OPERATE,
    "POST /api/dead-letters/{id}/drop": OPERATE,
}

# The gateway's own routes: everybody may send a document. The services authorize each of its fields.
GRAPHQL_ROUTES: Mapping[str, Access] = {
    "GET /": EVERYBODY,
    "GET /graphiql/{name}": EVERYBODY,
    "GET /images/{name}": EVERYBODY,
    "GET /graphql": EVERYBODY,
    "POST /graphql": EVERYBODY,
    "GET /graphql/": EVERYBODY,
    "POST /graphql/": EVERYBODY,
}
# GraphQL fields, by type and name: the root fields, and fields that require more than their root field.
GRAPHQL_FIELDS: Mapping[str, Access] = {
    "Query.product": EVERYBODY,
    "Query.products": EVERYBODY,
    "Query.order": READ_ORDERS,
    "Query.orders": READ_ORDERS,
    "Mutation.createProduct": CHANGE_PRODUCTS,
    "Mutation.updateProduct": CHANGE_PRODUCTS,
    "Mutation.deleteProduct": CHANGE_PRODUCTS,
    "Mutation.createOrder": PLACE_ORDERS,
    "Mutation.deleteOrder": CANCEL_ORDERS,
    "Product.stock": SEE_STOCK,
}

# gRPC methods of market.inventory.v1.Inventory, by name.
INVENTORY: Mapping[str, Access] = {
    "CheckAvaliable": _only("products"),
    "SetStock": _only("products"),
    "AddDelivery": _only("products"),
    "GetStock": _only("products", "orders"),
    "Reserve": _only("orders"),
    "ReserveMany": _only("orders"),
    "CancelReserve": _only("orders"),
    "ListReservations": _only("orders"),
    # No service books movements: products adds deliveries.
    "AddStock": _only(),
}
# gRPC methods that every server has, by service and name: probes and clients without a token use them.
GRPC_STANDARD: Mapping[str, Access] = {
    "grpc.health.v1.Health/Check": EVERYBODY,
    "grpc.health.v1.Health/List": EVERYBODY,
    "grpc.health.v1.Health/Watch": EVERYBODY,
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo": EVERYBODY,
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": EVERYBODY,
}

# The admin port of every service. It shows no data of the shop and changes nothing. The network limits its clients.
ADMIN: Mapping[str, Access] = {
    "GET /healthz": EVERYBODY,
    "GET /readyz": EVERYBODY,
    "GET /metrics": EVERYBODY,
}

# Commands that no port offers. Anyone who may run programs in the service's container is an operator.
COMMANDS: Mapping[str, Access] = {
    "products migrate": OPERATE,
    "inventory migrate": OPERATE,
    "orders migrate": OPERATE,
    "orders reconcile": OPERATE,
    "notifications dead-letters": OPERATE,
}
