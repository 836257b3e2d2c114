// The loop as a picture: eight boxes, in the order in which work goes round.

import { h, patch } from "../dom.js";

const MOOD_WORDS = { idle: "idle", good: "good", busy: "busy", attention: "needs attention" };

export function renderLoop({ summary }) {
  patch(document.querySelector("#loop .loop"), summary.loop.map((stage) =>
    h("li", { class: "stage", "data-key": stage.key, "data-stage": stage.key, "data-mood": stage.mood },
      h("span", { class: "stage-title" }, h("i", { "aria-hidden": "true" }), stage.title,
        h("span", { class: "hidden" }, `: ${MOOD_WORDS[stage.mood] ?? stage.mood}`)),
      h("strong", {}, stage.value),
      h("span", { class: "stage-detail", title: stage.detail }, stage.detail))));
}
