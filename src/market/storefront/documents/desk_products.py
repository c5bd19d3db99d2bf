"""The GraphQL documents of the desk's products."""

from __future__ import annotations

_PRODUCT = "id name description price currency imageUrl version stock updatedAt"

LIST_PRODUCTS = """
query ListDeskProducts($limit: Int, $after: String, $q: String, $sort: String) {
  products(limit: $limit, after: $after, q: $q, sort: $sort) {
    items { id name price currency stock updatedAt } total totalExact next suggested
  }
}
"""

GET_PRODUCT = f"""
query GetDeskProduct($id: ID!) {{
  product(id: $id) {{ {_PRODUCT} }}
}}
"""

CREATE_PRODUCT = f"""
mutation CreateProduct($input: CreateProductInput!, $key: String) {{
  createProduct(input: $input, idempotencyKey: $key) {{ {_PRODUCT} }}
}}
"""

UPDATE_PRODUCT = f"""
mutation UpdateProduct($input: UpdateProductInput!) {{
  updateProduct(input: $input) {{ {_PRODUCT} }}
}}
"""

DELETE_PRODUCT = """
mutation DeleteProduct($id: ID!, $expectedVersion: Int) {
  deleteProduct(id: $id, expectedVersion: $expectedVersion)
}
"""
