// The page: what is typed, asked, stopped, asked again, changed, kept.

import { answer, models } from "./api.js";
import {
  isConversation, loadConversations, loadSettings, newConversation, removeConversation, saveConversation, saveSettings,
} from "./store.js";
import { button, said, turnView } from "./view.js";

const byId = (id) => document.getElementById(id);
const log = byId("log");
const question = byId("question");
const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_completion_tokens", "seed"];

const settings = loadSettings();
const conversations = loadConversations();
let known = []; // models: {id, parent, converses}
let current = conversations[0] ?? newConversation([null, null]);
let running = []; // AbortControllers of the answers that are being written
let views = []; // of the turns that are shown
let editing = null; // the number of the turn whose question is being changed

// Asking

/** The messages behind which a panel's model is to answer turn `number`. */
function messagesFor(panel, number) {
  const told = settings.system ? [{ role: "system", content: settings.system }] : [];
  current.turns.slice(0, number + 1).forEach((turn, index) => {
    told.push({ role: "user", content: turn.question });
    const text = turn.answers[panel]?.text;
    if (index < number && text) {
      told.push({ role: "assistant", content: text });
    }
  });
  return told;
}

/** The names of the models that are asked, a panel each. */
function asked() {
  return current.models.filter((name) => name !== null);
}

/** Have a panel's model answer one turn, and show it as it comes. */
async function write(panel, number) {
  const conversation = current;
  const turn = conversation.turns[number];
  const view = views[number].answers[panel];
  const name = conversation.models[panel] ?? turn.answers[panel].model;
  const model = known.find((one) => one.id === name) ?? { id: name, converses: true };
  const found = { model: name, text: "", plain: !model.converses, reason: null, tokens: 0, seconds: 0, problem: null };
  const controller = new AbortController();
  const messages = messagesFor(panel, number);
  turn.answers[panel] = found;
  running.push(controller);
  view.show(found);
  let first = null;
  let pieces = 0;
  try {
    for await (const piece of answer(model, messages, given(), settings.key, controller.signal)) {
      found.text += piece.text;
      if (piece.text) {
        first ??= performance.now();
        pieces += 1;
        found.seconds = (performance.now() - first) / 1000;
      }
      found.reason = piece.reason ?? found.reason;
      found.tokens = piece.tokens ?? pieces; // until they are counted there is about a token in a piece
      showAtEnd(() => view.show(found));
    }
  } catch (error) {
    if (controller.signal.aborted) {
      found.reason = "stopped";
    } else {
      found.problem = error.message;
    }
  }
  running = running.filter((one) => one !== controller);
  view.show(found);
  keep(conversation);
  showRunning();
  say(found.problem ?? `${name} has answered. ${said(found)}`);
}

/** The settings that are not left empty. */
function given() {
  const filled = NUMBERS.filter((name) => Number.isFinite(settings[name]));
  return Object.fromEntries(filled.map((name) => [name, settings[name]]));
}

function ask(text) {
  if (editing !== null) {
    current.turns.length = editing;
    edit(null);
  }
  current.turns.push({ question: text, answers: [] });
  current.title ||= text.slice(0, 60);
  if (!conversations.includes(current)) {
    conversations.unshift(current);
  }
  keep(current);
  show();
  say("Writing.");
  asked().forEach((_, panel) => write(panel, current.turns.length - 1));
  showRunning();
  log.scrollTop = log.scrollHeight;
}

function stop() {
  running.forEach((controller) => controller.abort());
}

/** Change the question of this turn; null: no more. What follows it stays until the change is sent. */
function edit(number) {
  stop();
  editing = number;
  byId("editing").hidden = number === null;
  question.value = number === null ? "" : current.turns[number].question;
  question.focus();
}

// Showing

/** Do something that makes the log longer; whoever was at its end stays there. */
function showAtEnd(change) {
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  change();
  if (atEnd) {
    requestAnimationFrame(() => requestAnimationFrame(() => (log.scrollTop = log.scrollHeight)));
  }
}

function show() {
  views = current.turns.map((turn, number) => {
    const panels = [...Array(Math.max(asked().length, turn.answers.length)).keys()];
    const names = panels.map((panel) => turn.answers[panel]?.model ?? current.models[panel]);
    return turnView(turn, names, { edit: () => edit(number), again: (panel) => again(panel, number) });
  });
  log.replaceChildren(...views.map((view) => view.whole));
  current.turns.forEach((turn, number) => {
    views[number].answers.forEach((view, panel) => turn.answers[panel] && view.show(turn.answers[panel]));
  });
  byId("list").replaceChildren(...conversations.map(entry));
  showRunning();
}

function again(panel, number) {
  if (running.length) {
    say("An answer is being written: Stop ends it.");
  } else {
    write(panel, number);
    showRunning();
  }
}

function entry(conversation) {
  const item = document.createElement("li");
  const open = button(conversation.title, `${conversation.title}, a conversation`, () => {
    turnTo(conversation);
    openMenu(false);
  });
  open.setAttribute("aria-current", String(conversation === current));
  const remove = button("×", `× Delete ${conversation.title}`, () => {
    if (confirm(`Delete "${conversation.title}"?`)) {
      conversations.splice(conversations.indexOf(conversation), 1);
      removeConversation(conversation);
      if (conversation === current) {
        turnTo(newConversation([...current.models]));
      }
      show();
      byId("new").focus();
    }
  });
  item.append(open, remove);
  return item;
}

function turnTo(conversation) {
  stop();
  if (editing !== null) {
    edit(null);
  }
  current = conversation;
  choose();
  show();
  log.scrollTop = log.scrollHeight;
}

function showRunning() {
  byId("stop").hidden = !running.length;
  byId("send").hidden = Boolean(running.length);
  log.querySelectorAll(".again").forEach((one) => one.setAttribute("aria-disabled", String(Boolean(running.length))));
}

/** To those who hear the page. */
function say(words) {
  byId("status").textContent = words;
}

function tell(problem) {
  byId("problem").hidden = !problem;
  byId("problem").textContent = problem ?? "";
}

function keep(conversation) {
  if (conversations.includes(conversation)) {
    tell(saveConversation(conversation) ? null : "This browser has no room to keep the conversation.");
  }
}

// Models

function choose() {
  const names = known.map((one) => one.id);
  const first = names.includes(current.models[0]) ? current.models[0] : (names[0] ?? null);
  const second = names.includes(current.models[1]) ? current.models[1] : null;
  current.models = [first, second];
  byId("model-0").value = first;
  byId("model-1").value = second ?? names.find((name) => name !== first) ?? first;
  byId("compare").checked = second !== null;
  showChosen();
}

function chosen() {
  stop();
  current.models = [byId("model-0").value, byId("compare").checked ? byId("model-1").value : null];
  showChosen();
  show();
  keep(current);
}

function showChosen() {
  byId("second").hidden = !byId("compare").checked;
  const converses = known.find((one) => one.id === current.models[0])?.converses ?? true;
  question.placeholder = converses ? "Ask something" : "Begin a text, and the model goes on";
}

async function learnModels() {
  try {
    known = await models(settings.key);
    tell(null);
  } catch (error) {
    tell(`${error.message}. Settings takes an API key.`);
  }
  for (const id of ["model-0", "model-1"]) {
    byId(id).replaceChildren(
      ...known.map((one) => new Option(one.parent ? `${one.id} (an adapter of ${one.parent})` : one.id, one.id)),
    );
  }
  choose();
  show();
}

// Settings

function applySettings() {
  if (settings.theme === "auto") {
    delete document.documentElement.dataset.theme;
  } else {
    document.documentElement.dataset.theme = settings.theme;
  }
  const fields = byId("settings").querySelector("form").elements;
  for (const name of [...NUMBERS, "system", "theme", "key"]) {
    fields[name].value = settings[name] ?? "";
  }
}

byId("settings").addEventListener("close", () => {
  const fields = byId("settings").querySelector("form").elements;
  const key = settings.key;
  for (const name of ["system", "theme", "key"]) {
    settings[name] = fields[name].value;
  }
  for (const name of NUMBERS) {
    settings[name] = fields[name].value === "" ? null : fields[name].valueAsNumber;
  }
  saveSettings(settings);
  applySettings();
  if (key !== settings.key) {
    learnModels();
  }
});

// What is pressed

function openMenu(open) {
  byId("conversations").classList.toggle("open", open);
  byId("menu").setAttribute("aria-expanded", String(open));
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = question.value.trim();
  if (text && !running.length && current.models[0]) {
    question.value = "";
    ask(text);
  }
});
question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    byId("ask").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !byId("settings").open) {
    if (byId("conversations").classList.contains("open")) {
      openMenu(false);
      byId("menu").focus();
    } else if (running.length) {
      stop();
    } else if (editing !== null) {
      edit(null);
    }
  }
});
byId("stop").addEventListener("click", () => {
  stop();
  question.focus();
});
byId("leave").addEventListener("click", () => edit(null));
byId("new").addEventListener("click", () => {
  turnTo(newConversation([...current.models]));
  openMenu(false);
});
byId("menu").addEventListener("click", () => openMenu(!byId("conversations").classList.contains("open")));
byId("open-settings").addEventListener("click", () => byId("settings").showModal());
for (const id of ["model-0", "model-1", "compare"]) {
  byId(id).addEventListener("change", chosen);
}
addEventListener("storage", (event) => {
  if (isConversation(event.key)) {
    const theirs = loadConversations().filter((one) => one.id !== current.id);
    const mine = conversations.includes(current) ? [current] : [];
    conversations.splice(0, conversations.length, ...mine, ...theirs);
    byId("list").replaceChildren(...conversations.map(entry));
  }
});

applySettings();
show();
learnModels();
