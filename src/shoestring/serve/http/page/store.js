// Conversations and settings, kept in this browser and nowhere else, each conversation by itself: pages that are open
// beside each other keep theirs.
//
// A conversation: {id, title, changed, models: [name, name or null], turns: [{question, answers: [answer, answer]}]}.
// An answer: {model, text, plain, reason, tokens, seconds, problem}.

const CONVERSATION = "shoestring.conversation.";
const SETTINGS = "shoestring.settings";

/** The newest first. */
export function loadConversations() {
  const found = names()
    .map((name) => load(name, null))
    .filter((one) => one && Array.isArray(one.turns) && Array.isArray(one.models));
  return found.sort((a, b) => b.changed - a.changed);
}

/** Returns false where the browser has no room, or keeps nothing. */
export function saveConversation(conversation) {
  if (!conversation.turns.length) {
    return true;
  }
  conversation.changed = Date.now();
  return save(CONVERSATION + conversation.id, conversation);
}

export function removeConversation(conversation) {
  try {
    localStorage.removeItem(CONVERSATION + conversation.id);
  } catch {
    // Nothing is kept, so nothing is there.
  }
}

export function isConversation(name) {
  return name === null || name.startsWith(CONVERSATION);
}

export function loadSettings() {
  return { theme: "auto", ...load(SETTINGS, {}) };
}

export function saveSettings(settings) {
  return save(SETTINGS, settings);
}

export function newConversation(models) {
  return { id: crypto.getRandomValues(new Uint32Array(4)).join("-"), title: "", changed: 0, models, turns: [] };
}

function names() {
  try {
    return Object.keys(localStorage).filter((name) => name.startsWith(CONVERSATION));
  } catch {
    return [];
  }
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
