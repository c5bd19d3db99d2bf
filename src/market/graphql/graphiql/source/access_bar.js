// The bar above the editors, where the shop asks for a token: sign-in at the issuer, or a field for a token.
import * as signIn from './sign_in.js';

export class AccessBar {
  // `beforeLeaving` is awaited before the browser goes to the issuer.
  constructor(element, settings, { message = '', beforeLeaving }) {
    this.element = element;
    this.settings = settings;
    this.beforeLeaving = beforeLeaving;
    element.hidden = false;
    this.show(message);
  }

  // Show who has signed in, or how to; `message` says what has gone wrong.
  show(message = '') {
    const held = signIn.current();
    const parts = held === null ? this.signedOut() : this.signedIn(held);
    const status = create('span', { className: 'message', textContent: message });
    status.setAttribute('role', 'status');
    this.element.replaceChildren(...parts, status);
  }

  signedIn(held) {
    const text = held.name === null ? 'Requests have an access token.' : `Signed in as ${held.name}.`;
    const label = held.name === null ? 'Remove' : 'Sign out';
    return [create('span', { textContent: text }), button(label, () => this.end())];
  }

  signedOut() {
    const field = create('input', { type: 'text', placeholder: 'Access token', autocomplete: 'off', spellcheck: false });
    field.setAttribute('aria-label', 'Access token');
    field.addEventListener('change', () => this.attempt(() => signIn.use(field.value)));
    if (this.settings.clientId === undefined) return [field];
    const enter = button('Sign in', () => this.enter(enter));
    if (!signIn.isPossible()) {
      enter.disabled = true;
      enter.title = 'Needs https';
    }
    return [enter, create('span', { textContent: 'or' }), field];
  }

  async enter(pressed) {
    pressed.disabled = true;
    try {
      await this.beforeLeaving();
      await signIn.begin(this.settings);
    } catch (error) {
      this.show(`Sign-in failed: ${error.message}.`);
    }
  }

  end() {
    signIn.signOut();
    this.show();
  }

  attempt(action) {
    try {
      action();
      this.show();
    } catch (error) {
      this.show(`Not used: ${error.message}.`);
    }
  }
}

function button(label, onClick) {
  const element = create('button', { type: 'button', textContent: label });
  element.addEventListener('click', onClick);
  return element;
}

function create(name, properties) {
  return Object.assign(document.createElement(name), properties);
}
