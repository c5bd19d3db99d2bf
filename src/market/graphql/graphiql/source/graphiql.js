// GraphiQL for this host's /graphql, prefilled with what a visitor tries first: list the products, order one.
import { GraphiQL } from 'graphiql';
import 'graphiql/style.css';
import { createElement } from 'react';
import { createRoot } from 'react-dom/client';
import { AccessBar } from './access_bar.js';
import * as signIn from './sign_in.js';
import { keepTabs, restored, storage } from './storage.js';

const ENDPOINT = '/graphql';
const SETTINGS = '/graphiql/settings.json';

const CONFIRMATION = {
  open: `# See the variables below: the confirmation
# goes to that e-mail address.`,
  required: `# The person who has signed in is the buyer,
# and gets the confirmation.`,
};

const example = (confirmation) => `# Choose one of the two at the play button.

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

${confirmation}
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

// Called with the error of a response that the gateway gives to a token that it does not accept.
let onRejectedToken = () => {};

async function fetcher(request, options) {
  const headers = new Headers(options?.headers);
  const held = signIn.current();
  // The editor of headers comes first.
  const isHeldSent = held !== null && !headers.has('authorization');
  if (isHeldSent) headers.set('authorization', `Bearer ${held.token}`);
  headers.set('content-type', 'application/json');
  headers.set('accept', 'application/graphql-response+json, application/json;q=0.9');
  const response = await fetch(ENDPOINT, { method: 'POST', headers, body: JSON.stringify(request) });
  const result = await response.json();
  if (response.status === 401 && isHeldSent) onRejectedToken(result);
  return result;
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

async function loadSettings() {
  try {
    return await (await fetch(SETTINGS)).json();
  } catch {
    return { mode: 'open' };
  }
}

async function showAccessBar(settings) {
  let message = '';
  try {
    await signIn.finish(settings);
  } catch (error) {
    message = `Sign-in failed: ${error.message}.`;
  }
  const bar = new AccessBar(document.getElementById('access'), settings, { message, beforeLeaving: keepTabs });
  onRejectedToken = (result) => {
    signIn.use('');
    bar.show(`The token was not accepted: ${result?.errors?.[0]?.message}`);
  };
}

// Return GraphiQL's properties for the example, with the product to order.
function defaultEditors(mode, productId) {
  const items = [{ productId: productId ?? 'none yet: createProduct makes one', quantity: 1 }];
  const buyer = mode === 'required' ? {} : { user: 'visitor', email: 'visitor@example.test' };
  const variables = JSON.stringify({ input: { ...buyer, items } }, null, 2);
  const query = example(CONFIRMATION[mode] ?? CONFIRMATION.open);
  return { defaultTabs: [{ query, variables, operationName: 'Products' }], variables };
}

async function start() {
  const settings = await loadSettings();
  if (settings.mode === 'required') await showAccessBar(settings);
  const editors = restored ?? defaultEditors(settings.mode, await liveProduct());
  createRoot(document.getElementById('graphiql')).render(
    createElement(GraphiQL, {
      fetcher,
      storage,
      ...editors,
      defaultEditorToolsVisibility: 'variables',
      shouldPersistHeaders: false,
    }),
  );
}

start();
