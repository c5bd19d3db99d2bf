"""The GraphQL documents of the desk's orders, and of the names of products in a report."""

from __future__ import annotations

_ORDER = """
  id user email total currency status createdAt confirmedAt cancelledAt rejectedAt rejectionReason
  shortages { productId wanted left }
  items { productId name quantity unitPrice }
"""

LIST_ORDERS = """
query ListDeskOrders(
  $user: String, $status: String, $createdFrom: String, $createdTo: String, $limit: Int, $after: String
) {
  orders(
    user: $user, status: $status, createdFrom: $createdFrom, createdTo: $createdTo, limit: $limit, after: $after
  ) {
    items { id user email total currency status createdAt items { productId name quantity unitPrice } }
    total totalExact next
  }
}
"""

GET_ORDER = f"""
query GetDeskOrder($id: ID!) {{
  order(id: $id) {{ {_ORDER} }}
}}
"""

CANCEL_ORDER = f"""
mutation CancelDeskOrder($id: ID!) {{
  deleteOrder(id: $id) {{ {_ORDER} }}
}}
"""

NAME_PRODUCTS = """
query NameProducts($ids: [ID!]!) {
  products(ids: $ids) { items { id name price currency } }
}
"""
