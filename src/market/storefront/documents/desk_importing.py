"""The GraphQL documents of the import."""

from __future__ import annotations

_PRODUCT = "id name description price currency imageUrl version"
# The searches of one request. A document is always the same text, so their number is fixed.
_NUMBERS = range(10)

_PHRASES = ", ".join(f"$q{i}: String!" for i in _NUMBERS)
_PAGES = "\n".join(
    f'  p{i}: products(q: $q{i}, limit: $limit, sort: "created_at") {{ items {{ {_PRODUCT} }} }}' for i in _NUMBERS
)

FIND_PRODUCTS = f"""
query FindImportedProducts({_PHRASES}, $limit: Int!) {{
{_PAGES}
}}
"""

CREATE_PRODUCT = f"""
mutation ImportProduct($input: CreateProductInput!, $key: String!) {{
  createProduct(input: $input, idempotencyKey: $key) {{ {_PRODUCT} }}
}}
"""

UPDATE_PRODUCT = f"""
mutation ImportChange($input: UpdateProductInput!) {{
  updateProduct(input: $input) {{ {_PRODUCT} }}
}}
"""

GET_PRODUCT = f"""
query GetImportedProduct($id: ID!) {{
  product(id: $id) {{ {_PRODUCT} }}
}}
"""
