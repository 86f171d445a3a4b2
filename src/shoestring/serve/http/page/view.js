// How a conversation looks: questions and answers as articles, two answers beside each other where two models are asked.

import { copyButton, render } from "./markdown.js";

const CUT = {
  max_tokens: "cut at the most tokens that the settings allow",
  context: "cut: there is no more room for this conversation",
  dead_end: "cut: nothing could follow",
  time: "cut: the server allows no longer",
  shutdown: "cut: the server was stopped",
  stopped: "stopped",
};
const PATIENCE = 4; // a text that takes long to draw is drawn less often: so many times as long lies between

/** One turn. names: of the models that answer; actions: {edit(), again(panel)}. */
export function turnView(turn, names, actions) {
  const question = article("question", "You");
  question.text.textContent = turn.question;
  question.tools.append(button("Edit", "Edit this message", actions.edit));
  const answers = names.map((name, panel) => answerView(name, () => actions.again(panel)));
  const holder = document.createElement("div");
  holder.className = answers.length > 1 ? "pair" : "";
  holder.append(...answers.map((one) => one.whole));
  const whole = document.createElement("section");
  whole.append(question.whole, holder);
  return { whole, answers };
}

function answerView(name, again) {
  const made = article("answer", name);
  const figures = document.createElement("span");
  let shown = { text: "" };
  let drawn = null; // the timer of the next drawing
  let cost = 0; // milliseconds of the latest one
  made.tools.append(
    figures,
    button("Again", `Another answer by ${name}`, again, "again"),
    copyButton(() => shown.text, made.text, `Copy this answer by ${name}`),
  );

  function draw() {
    const begun = performance.now();
    drawn = null;
    made.text.classList.toggle("plain", Boolean(shown.plain));
    if (shown.plain) {
      made.text.textContent = shown.text;
    } else {
      render(made.text, shown.text);
    }
    if (shown.problem) {
      const told = document.createElement("p");
      told.className = "wrong";
      told.textContent = shown.problem;
      made.text.append(told);
    }
    figures.textContent = said(shown);
    made.whole.setAttribute("aria-busy", "false");
    cost = performance.now() - begun;
  }

  return {
    whole: made.whole,
    /** Shows an answer as it is, at most once a frame. */
    show(answer) {
      shown = answer;
      made.whole.setAttribute("aria-busy", "true"); // there is more than is drawn
      drawn ??= setTimeout(() => requestAnimationFrame(draw), PATIENCE * cost);
    },
  };
}

/** Speed and end of an answer, in words. */
export function said(answer) {
  const parts = [];
  if (answer.tokens) {
    parts.push(answer.tokens === 1 ? "1 token" : `${answer.tokens} tokens`);
  }
  if (answer.tokens > 1 && answer.seconds > 0) {
    parts.push(`${((answer.tokens - 1) / answer.seconds).toFixed(1)} tokens/s`);
  }
  if (CUT[answer.reason]) {
    parts.push(CUT[answer.reason]);
  }
  return parts.join(" · ");
}

function article(kind, who) {
  const whole = document.createElement("article");
  whole.className = kind;
  const name = document.createElement("h2");
  name.textContent = who;
  const text = document.createElement("div");
  text.className = "text";
  const tools = document.createElement("div");
  tools.className = "tools";
  whole.append(name, text, tools);
  return { whole, text, tools };
}

/** Its label begins its description, which says the same at more length. */
export function button(label, description, action, kind = "") {
  const made = document.createElement("button");
  made.type = "button";
  made.className = kind;
  made.textContent = label;
  made.setAttribute("aria-label", description);
  made.addEventListener("click", action);
  return made;
}
