// Sign-in for the page: OAuth 2.0's authorization code with PKCE, as a public client (RFC 7636, RFC 9700), and OpenID
// Connect for the name of who has signed in. The access token is in the tab's sessionStorage until it expires.

const TOKEN = 'market.token';
const ATTEMPT = 'market.sign-in';
const SIGNED_OUT = 'market.signed-out';
const TIMEOUT_MS = 10_000;
const MAX_RESPONSE_BYTES = 262_144;
// A clock may differ from the issuer's by this much.
const LEEWAY_SECONDS = 60;
// How long a sign-in may take, from the click to the return.
const MAX_ATTEMPT_MS = 15 * 60_000;

// Return the page's address at the issuer. GET /graphql redirects to the page, with the issuer's response.
const redirectUri = () => `${location.origin}/graphql`;

// Return what the tab holds: {token, name, expiresAt}, or null if it is nothing or has expired.
export function current() {
  const held = stored(TOKEN);
  if (held !== null && held.expiresAt !== null && held.expiresAt <= Date.now()) {
    sessionStorage.removeItem(TOKEN);
    return null;
  }
  return held;
}

// Use a token that the visitor has pasted, with or without "Bearer" before it. An empty text removes the token.
export function use(text) {
  const token = text.trim().replace(/^bearer\s+/i, '');
  if (token === '') {
    sessionStorage.removeItem(TOKEN);
  } else if (/^[\x21-\x7e]+$/.test(token)) {
    store(TOKEN, { token, name: null, expiresAt: null });
  } else {
    throw new Error('a token has no spaces and no characters beyond ASCII');
  }
}

// Forget the token. The issuer may still have a session of its own, so the next sign-in asks who it is.
export function signOut() {
  sessionStorage.removeItem(TOKEN);
  store(SIGNED_OUT, true);
}

// Return whether the browser can make what PKCE needs: it can on https and on loopback.
export const isPossible = () => window.isSecureContext && crypto.subtle !== undefined;

// Go to the issuer, which sends the browser back to `finish`. Throws Error if the issuer's metadata cannot be used.
export async function begin(settings) {
  const { authorization_endpoint: endpoint } = await metadata(settings);
  const attempt = { state: random(), nonce: random(), verifier: random(), startedAt: Date.now() };
  const url = new URL(endpoint);
  const parameters = {
    ...settings.parameters,
    response_type: 'code',
    client_id: settings.clientId,
    redirect_uri: redirectUri(),
    scope: settings.scope,
    state: attempt.state,
    nonce: attempt.nonce,
    code_challenge: await challenge(attempt.verifier),
    code_challenge_method: 'S256',
  };
  if (stored(SIGNED_OUT)) parameters.prompt = 'login';
  for (const [name, value] of Object.entries(parameters)) url.searchParams.set(name, value);
  store(ATTEMPT, attempt);
  location.assign(url);
}

// If the page's address has the issuer's response, remove it from there and exchange its code for a token.
// Throws Error if the sign-in has failed.
export async function finish(settings) {
  const response = new URLSearchParams(location.search);
  if (!response.has('state') || !(response.has('code') || response.has('error'))) return;
  history.replaceState(null, '', location.pathname);
  const attempt = stored(ATTEMPT);
  sessionStorage.removeItem(ATTEMPT);
  if (attempt === null || attempt.state !== response.get('state') || attempt.startedAt + MAX_ATTEMPT_MS < Date.now()) {
    throw new Error('this page has not started the sign-in, or too long ago');
  }
  // RFC 9207: the response of another issuer must not be taken for this one's.
  if ((response.get('iss') ?? settings.issuer) !== settings.issuer) throw new Error('another issuer has responded');
  if (response.has('error')) {
    throw new Error(response.get('error_description') || `the issuer has refused it: ${response.get('error')}`);
  }
  const { token_endpoint: endpoint } = await metadata(settings);
  const issued = await json(endpoint, {
    method: 'POST',
    body: new URLSearchParams({
      grant_type: 'authorization_code',
      code: response.get('code'),
      redirect_uri: redirectUri(),
      client_id: settings.clientId,
      code_verifier: attempt.verifier,
    }),
  });
  if (typeof issued.access_token !== 'string' || String(issued.token_type).toLowerCase() !== 'bearer') {
    throw new Error('the issuer has returned no bearer token');
  }
  const claims = checkedClaims(issued.id_token, settings, attempt.nonce);
  const name = [claims.name, claims.preferred_username, claims.email, claims.sub].find((v) => typeof v === 'string' && v);
  const seconds = Number.isFinite(issued.expires_in) ? issued.expires_in : null;
  store(TOKEN, {
    token: issued.access_token,
    name: name ?? 'somebody',
    expiresAt: seconds === null ? null : Date.now() + seconds * 1000,
  });
  sessionStorage.removeItem(SIGNED_OUT);
}

// Return the claims of an ID token that came from the token endpoint itself. Its signature need not be checked then
// (OpenID Connect Core, 3.1.3.7): the connection to the issuer proves where it is from.
function checkedClaims(idToken, settings, nonce) {
  let claims;
  try {
    const bytes = Uint8Array.from(atob(idToken.split('.')[1].replace(/-/g, '+').replace(/_/g, '/')), (c) => c.charCodeAt(0));
    claims = JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    throw new Error('the issuer has returned no ID token');
  }
  const wrong =
    (claims?.iss !== settings.issuer && 'another issuer') ||
    (![claims.aud].flat().includes(settings.clientId) && 'another client') ||
    (claims.azp !== undefined && claims.azp !== settings.clientId && 'another client') ||
    (claims.nonce !== nonce && 'another sign-in') ||
    (!(claims.exp > Date.now() / 1000 - LEEWAY_SECONDS) && 'an earlier time');
  if (wrong) throw new Error(`the ID token is for ${wrong}`);
  return claims;
}

// Return the issuer's metadata (OpenID Connect Discovery), whose endpoints must be on the issuer's own origin.
async function metadata(settings) {
  const found = await json(`${settings.issuer.replace(/\/$/, '')}/.well-known/openid-configuration`);
  if (found.issuer !== settings.issuer) throw new Error('the issuer states another name for itself');
  for (const name of ['authorization_endpoint', 'token_endpoint']) {
    if (!URL.canParse(found[name]) || new URL(found[name]).origin !== new URL(settings.issuer).origin) {
      throw new Error(`the issuer's ${name} is not on its own origin`);
    }
  }
  return found;
}

// Return the JSON object of a response of the issuer. Throws Error unless it is one, in time and of moderate size.
async function json(url, options) {
  let text;
  let response;
  try {
    response = await fetch(url, {
      ...options,
      headers: { accept: 'application/json' },
      credentials: 'omit',
      redirect: 'error',
      cache: 'no-store',
      referrerPolicy: 'no-referrer',
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
    text = await limitedText(response);
  } catch (error) {
    if (error.name === 'TimeoutError') throw new Error('the issuer has not responded in time');
    throw error instanceof TypeError ? new Error('the issuer cannot be reached') : error;
  }
  let value = null;
  try {
    value = JSON.parse(text);
  } catch {
    // Reported below.
  }
  const isObject = typeof value === 'object' && value !== null && !Array.isArray(value);
  if (!response.ok) {
    const reason = isObject && (value.error_description || value.error);
    throw new Error(typeof reason === 'string' ? reason.slice(0, 200) : `the issuer has returned status ${response.status}`);
  }
  if (!isObject) throw new Error('the issuer has returned no JSON object');
  return value;
}

async function limitedText(response) {
  const decoder = new TextDecoder();
  let text = '';
  let size = 0;
  const reader = response.body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return text + decoder.decode();
    size += value.length;
    if (size > MAX_RESPONSE_BYTES) {
      await reader.cancel();
      throw new Error('the issuer has returned too much');
    }
    text += decoder.decode(value, { stream: true });
  }
}

// Return 256 random bits, as PKCE's verifiers are written.
const random = () => base64url(crypto.getRandomValues(new Uint8Array(32)));

async function challenge(verifier) {
  return base64url(new Uint8Array(await crypto.subtle.digest('SHA-256', new TextEncoder().encode(verifier))));
}

function base64url(bytes) {
  return btoa(String.fromCharCode(...bytes)).replace(/\+/g, '-').replace(/\//g, '_').replace(/=/g, '');
}

function store(key, value) {
  sessionStorage.setItem(key, JSON.stringify(value));
}

function stored(key) {
  try {
    return JSON.parse(sessionStorage.getItem(key));
  } catch {
    return null;
  }
}
