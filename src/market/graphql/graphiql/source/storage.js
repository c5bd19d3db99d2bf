// What GraphiQL may keep in the browser: the visitor's theme, history and pane sizes. Not the tabs, whose product may be
// deleted by now, and not the headers, which may have a token: GraphiQL would keep them in its history.

const EDITORS = 'market.editors';
// GraphiQL stores its tabs half a second after the last key.
const STORED_AFTER_MS = 600;

// The tabs as they were when the visitor left to sign in; null otherwise. They are read once.
const restoredTabs = sessionStorage.getItem(EDITORS);
sessionStorage.removeItem(EDITORS);
let tabs = restoredTabs;

// The properties that make GraphiQL show the restored tabs, with the same one in front; null if there are none.
export const restored = activeTab();

function activeTab() {
  if (restoredTabs === null) return null;
  const state = JSON.parse(restoredTabs);
  const { query, variables } = state.tabs[state.activeTabIndex];
  return { query, variables: variables ?? '' };
}

// Keep the tabs until the page is opened again in this tab of the browser.
export async function keepTabs() {
  await new Promise((resolve) => setTimeout(resolve, STORED_AFTER_MS));
  if (tabs !== null) sessionStorage.setItem(EDITORS, tabs);
}

export const storage = {
  getItem: (key) => (key.includes('tabState') ? restoredTabs : localStorage.getItem(key)),
  setItem(key, value) {
    if (key.includes('tabState')) tabs = value;
    else if (key.includes('queries') || key.includes('favorites')) localStorage.setItem(key, withoutHeaders(value));
    else if (!key.toLowerCase().includes('headers')) localStorage.setItem(key, value);
  },
  removeItem: (key) => localStorage.removeItem(key),
  clear: () => localStorage.clear(),
  get length() {
    return localStorage.length;
  },
};

const withoutHeaders = (json) => JSON.stringify(JSON.parse(json), (name, value) => (name === 'headers' ? undefined : value));
