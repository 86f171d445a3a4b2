// Conversations and settings, kept in this browser and nowhere else.
//
// A conversation: {id, title, models: [name, name or null], turns: [{question, answers: [answer, answer]}]}.
// An answer: {text, reason, tokens, seconds, problem}.

const CONVERSATIONS = "shoestring.conversations";
const SETTINGS = "shoestring.settings";
const MOST = 200; // conversations; the oldest go

export function loadConversations() {
  const found = load(CONVERSATIONS, []);
  return Array.isArray(found) ? found.filter((one) => one && Array.isArray(one.turns)) : [];
}

/** Returns false where the browser has no room, or keeps nothing. */
export function saveConversations(conversations) {
  return save(CONVERSATIONS, conversations.filter((one) => one.turns.length).slice(0, MOST));
}

export function loadSettings() {
  return { theme: "auto", ...load(SETTINGS, {}) };
}

export function saveSettings(settings) {
  return save(SETTINGS, settings);
}

export function newConversation(models) {
  return { id: crypto.getRandomValues(new Uint32Array(4)).join("-"), title: "", models, turns: [] };
}

function load(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

function save(name, value) {
  try {
    localStorage.setItem(name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}
