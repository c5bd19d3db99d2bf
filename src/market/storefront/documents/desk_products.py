"""The GraphQL documents of the desk's products."""

from __future__ import annotations

LIST_PRODUCTS = """
query ListDeskProducts($limit: Int, $after: String, $q: String, $sort: String) {
  products(limit: $limit, after: $after, q: $q, sort: $sort) {
    items { id name price currency imageUrl stock updatedAt } total totalExact next suggested
  }
}
"""
