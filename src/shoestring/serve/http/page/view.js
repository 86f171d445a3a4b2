// How a conversation looks: questions and answers as articles, two answers beside each other where two models are asked.

import { render } from "./markdown.js";

const CUT = {
  max_tokens: "cut at the most tokens that the settings allow",
  context: "cut: there is no more room for this conversation",
  time: "cut: the server allows no longer",
  shutdown: "cut: the server was stopped",
  stopped: "stopped",
};

/** One turn. actions: {edit(), again(panel)}; models: the names of those that were asked. */
export function turnView(turn, models, actions) {
  const question = article("question", "You");
  question.text.textContent = turn.question;
  question.tools.append(button("Edit", "Edit this message and ask again", actions.edit));
  const made = document.createElement("section");
  const answers = models.map((model, panel) => answerView(model, panel, actions));
  const holder = document.createElement("div");
  holder.className = answers.length > 1 ? "pair" : "";
  holder.append(...answers.map((one) => one.whole));
  made.append(question.whole, holder);
  return { whole: made, answers };
}

function answerView(model, panel, actions) {
  const made = article("answer", model);
  const figures = document.createElement("span");
  made.tools.append(figures, button("Again", `Another answer by ${model}`, () => actions.again(panel)));
  let drawn = null;
  return {
    whole: made.whole,
    /** Shows an answer as it is, at most once a frame. */
    show(answer) {
      if (drawn === null) {
        drawn = requestAnimationFrame(() => {
          drawn = null;
          render(made.text, answer.text);
          made.text.classList.toggle("wrong", Boolean(answer.problem));
          if (answer.problem) {
            made.text.append(answer.problem);
          }
          figures.textContent = said(answer);
        });
      }
    },
  };
}

/** Speed and end of an answer, in words. */
export function said(answer) {
  const parts = [];
  if (answer.tokens) {
    parts.push(`${answer.tokens} tokens`);
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

export function button(label, description, action) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = label;
  made.setAttribute("aria-label", description);
  made.addEventListener("click", action);
  return made;
}
