// GraphiQL for this host's /graphql, prefilled with what a visitor tries first: list the products, order one.
import { GraphiQL } from 'graphiql';
import 'graphiql/style.css';
import { createElement } from 'react';
import { createRoot } from 'react-dom/client';

const ENDPOINT = '/graphql';

const DOCUMENT = `# Choose one of the two at the play button.

query Products {
  products(limit: 20) {
    total
    items {
      id
      name
      price
      currency
      available
    }
  }
}

# See the variables below: the confirmation
# goes to that e-mail address.
mutation CreateOrder($input: CreateOrderInput!) {
  createOrder(input: $input) {
    id
    status
    total
    currency
    items {
      name
      quantity
      unitPrice
      product {
        available
      }
    }
  }
}
`;

async function fetcher(request, options) {
  const response = await fetch(ENDPOINT, {
    method: 'POST',
    headers: {
      ...options?.headers,
      'content-type': 'application/json',
      accept: 'application/graphql-response+json, application/json;q=0.9',
    },
    body: JSON.stringify(request),
  });
  return response.json();
}

// Return the id of a product that can be ordered now, or of any product, or null.
async function liveProduct() {
  try {
    const { data } = await fetcher({ query: '{ products(limit: 100) { items { id available } } }' });
    const items = data.products.items;
    return (items.find((p) => p.available) ?? items[0])?.id ?? null;
  } catch {
    return null;
  }
}

// Keep the visitor's theme, history and pane sizes, but not the tabs: their product may be deleted by now.
const storage = {
  getItem: (key) => (key.includes('tabState') ? null : localStorage.getItem(key)),
  setItem: (key, value) => (key.includes('tabState') ? undefined : localStorage.setItem(key, value)),
  removeItem: (key) => localStorage.removeItem(key),
  clear: () => localStorage.clear(),
  get length() {
    return localStorage.length;
  },
};

liveProduct().then((id) => {
  const input = {
    user: 'visitor',
    email: 'visitor@example.test',
    items: [{ productId: id ?? 'none yet: createProduct makes one', quantity: 1 }],
  };
  const variables = JSON.stringify({ input }, null, 2);
  createRoot(document.getElementById('graphiql')).render(
    createElement(GraphiQL, {
      fetcher,
      storage,
      defaultTabs: [{ query: DOCUMENT, variables, operationName: 'Products' }],
      variables,
      defaultEditorToolsVisibility: 'variables',
    }),
  );
});
