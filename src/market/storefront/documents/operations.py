"""The GraphQL documents of the storefront. tests/storefront checks them against the published schema."""

from __future__ import annotations

_CARD = "id name price currency imageUrl available"
_ORDER = """
  id user email total currency status createdAt
  items { productId name quantity unitPrice }
"""

LIST_PRODUCTS = f"""
query ListProducts($limit: Int, $after: String, $q: String, $sort: String) {{
  products(limit: $limit, after: $after, q: $q, sort: $sort) {{
    items {{ {_CARD} }} total totalExact next suggested
  }}
}}
"""

GET_PRODUCTS = f"""
query GetProducts($ids: [ID!]!) {{
  products(ids: $ids) {{ items {{ {_CARD} }} }}
}}
"""

GET_PRODUCT = f"""
query GetProduct($id: ID!) {{
  product(id: $id) {{ {_CARD} description }}
}}
"""

SUGGEST_PRODUCTS = """
query SuggestProducts($q: String, $limit: Int) {
  products(q: $q, limit: $limit) { items { id name price currency } suggested }
}
"""

LIST_ALL_PRODUCTS = """
query ListAllProducts($limit: Int, $after: String) {
  products(limit: $limit, after: $after) { items { id updatedAt } next }
}
"""

CREATE_ORDER = f"""
mutation CreateOrder($input: CreateOrderInput!, $key: String) {{
  createOrder(input: $input, idempotencyKey: $key) {{ {_ORDER} }}
}}
"""

GET_ORDER = f"""
query GetOrder($id: ID!) {{
  order(id: $id) {{ {_ORDER} }}
}}
"""

LIST_ORDERS = f"""
query ListOrders($user: String, $limit: Int, $after: String) {{
  orders(user: $user, limit: $limit, after: $after) {{ items {{ {_ORDER} }} next }}
}}
"""

CANCEL_ORDER = f"""
mutation CancelOrder($id: ID!) {{
  deleteOrder(id: $id) {{ {_ORDER} }}
}}
"""
