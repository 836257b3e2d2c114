// The console: signs in, keeps the store fresh, draws the panels, carries out what is clicked.

import { differences } from "./announce.js";
import { Api } from "./api.js";
import { flash } from "./dom.js";
import { renderAccuracy } from "./panels/accuracy.js";
import { renderAudit } from "./panels/audit.js";
import { renderCampaign } from "./panels/campaign.js";
import { renderDrift } from "./panels/drift.js";
import { renderFleet } from "./panels/fleet.js";
import { renderIncidents } from "./panels/incidents.js";
import { renderJobs } from "./panels/jobs.js";
import { renderLoop } from "./panels/loop.js";
import { renderReleases } from "./panels/releases.js";
import { renderRollout } from "./panels/rollout.js";
import { Store } from "./store.js";

const TOKEN_KEY = "skerry-token";
const TICK_MS = 5_000;
const RESYNC_MS = 60_000;
const TOAST_MS = 8_000;
const REPORT_MS = 180_000;

/** Panel -> what it is drawn from. */
const PANELS = [
  [renderLoop, ["summary"]],
  [renderFleet, ["devices", "summary"]],
  [renderDrift, ["drift", "tasks"]],
  [renderAccuracy, ["campaigns", "releases", "tasks"]],
  [renderCampaign, ["campaign", "summary", "tasks"]],
  [renderIncidents, ["incidents", "summary"]],
  [renderRollout, ["rollouts", "summary"]],
  [renderReleases, ["releases", "champions", "lessons"]],
  [renderJobs, ["jobs", "summary"]],
  [renderAudit, ["audit"]],
];

const $ = (id) => document.getElementById(id);
let session = null;
let query = "";

function view() {
  return { now: Date.now() + session.store.data.clockOffset, query, chartWidth: $("accuracy").clientWidth - 32 };
}

/** Draw the panels that show one of these resources; all of them without an argument. */
function draw(names = null) {
  if (!session?.ready) return;
  for (const [render, sources] of PANELS) {
    if (names === null || sources.some((name) => names.has(name))) render(session.store.data, view());
  }
}

async function signIn(token) {
  const api = new Api(token);
  const stop = new AbortController();
  const mine = { api, stop, ready: false, store: null };
  mine.store = new Store(api, {
    onChange: (data, before, names) => {
      if (session !== mine || !mine.ready) return;
      draw(names);
      const said = differences(before, data);
      if (said.length) $("announcer").textContent = said.join(" ");
      highlight(before, data);
    },
    onError: (error) => { if (session === mine) complain(error); },
  });
  session = mine;
  await mine.store.load();
  if (session !== mine) return;
  sessionStorage.setItem(TOKEN_KEY, token);
  mine.ready = true;
  const { caller, role } = mine.store.data.summary;
  $("who").textContent = `${caller} · ${role}`;
  show("board");
  draw();
  const timers = [setInterval(() => draw(), TICK_MS), setInterval(() => mine.store.changedAll(), RESYNC_MS)];
  stop.signal.addEventListener("abort", () => timers.forEach(clearInterval));
  void api.follow({
    signal: stop.signal,
    onTopics: (topics) => mine.store.changed(topics),
    onState: (state) => {
      if (session !== mine) return;
      if (state === "refused") signOut("The token is not valid any more.");
      else connection(state);
      if (state === "live") mine.store.changedAll();
    },
  });
}

function signOut(message = "") {
  session?.stop.abort();
  session = null;
  sessionStorage.removeItem(TOKEN_KEY);
  $("who").textContent = "";
  $("sign-in-error").textContent = message;
  $("token").value = "";
  connection("out");
  show("sign-in");
  $("token").focus();
}

function show(name) {
  document.body.dataset.view = name;
}

function connection(state) {
  const [mood, text] = { live: ["good", "live"], waiting: ["attention", "reconnecting"], out: ["idle", "signed out"], starting: ["busy", "connecting"] }[state];
  $("connection").dataset.mood = mood;
  $("connection-text").textContent = text;
}

function complain(error) {
  if (error.status === 401) {
    signOut("The token is not valid.");
    return;
  }
  if (error.status === 0) {
    connection("waiting");
    return;
  }
  toast(error.message);
}

let toastTimer = 0;
function toast(message) {
  $("toast").textContent = message;
  $("toast").hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { $("toast").hidden = true; }, TOAST_MS);
}

/** Rows of the fleet whose release, update or presence changed light up for a moment. */
function highlight(before, data) {
  if (!before.devices || before.devices === data.devices) return;
  const old = new Map(before.devices.map((row) => [row.id, row]));
  for (const row of data.devices) {
    const was = old.get(row.id);
    if (was && was.online === row.online && was.active_release === row.active_release && was.update_status === row.update_status) continue;
    const element = document.querySelector(`#fleet tr[data-key="${CSS.escape(row.id)}"]`);
    if (element) flash(element);
  }
}

/** Ask for a reason, which may be needed; resolves to it, or to null when the person cancels. */
function ask(title, text, yes, needed = false) {
  const dialog = $("decision");
  $("decision-title").textContent = title;
  $("decision-text").textContent = text;
  $("decision-yes").textContent = yes;
  $("decision-reason").value = "";
  $("decision-reason").required = needed;
  dialog.returnValue = "";
  dialog.showModal();
  $("decision-reason").focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes" ? $("decision-reason").value : null), { once: true });
  });
}

async function decide(path, topic, question) {
  const reason = await ask(...question);
  if (reason === null) return;
  await session.api.post(path, { reason });
  session.store.changed([topic, "audit"]);
}

/** What a person may do about a campaign: title, what happens, whether a reason is needed. */
const CAMPAIGN_VERBS = {
  approve: ["Approve the campaign", "devices are invited, and it trains until its candidate is judged.", "Approve", false],
  pause: ["Pause the campaign", "nothing is asked of devices until it is resumed; what was done stays.", "Pause", true],
  resume: ["Resume the campaign", "it goes on where it was paused.", "Resume", false],
  abort: ["Abort the campaign", "its rounds are kept, no candidate is made.", "Abort", true],
};

const ACTIONS = {
  "sign-out": () => signOut(),
  cancel: () => $("decision").close(""),
  task: ({ task }) => session.store.choose(task),
  approve: ({ id }) => decide(`incidents/${encodeURIComponent(id)}/approve`, "incidents", ["Approve the cure", `${id}: a federated campaign starts; its model is released by canary.`, "Approve"]),
  dismiss: ({ id }) => decide(`incidents/${encodeURIComponent(id)}/dismiss`, "incidents", ["Dismiss the incident", `${id}: nothing is done; its devices stay silent about it for a day.`, "Dismiss"]),
  "abort-rollout": ({ id }) => decide(`rollouts/${encodeURIComponent(id)}/abort`, "rollouts", ["Abort the rollout", `${id}: devices that have the release already go back.`, "Abort", true]),
  campaign: ({ id, verb }) => {
    const [title, text, yes, needed] = CAMPAIGN_VERBS[verb];
    return decide(`campaigns/${encodeURIComponent(id)}/${verb}`, "campaigns", [title, `${id}: ${text}`, yes, needed]);
  },
  verify: async () => {
    session.store.data.verification = await session.api.get("audit/verify");
    draw(new Set(["audit"]));
    const { intact, entries, first_broken: broken } = session.store.data.verification;
    $("announcer").textContent = intact ? `The ledger of ${entries} entries is intact.` : `The ledger is broken at entry ${broken}.`;
  },
  report: async ({ id }) => {
    const { id: job } = await session.api.post(`incidents/${encodeURIComponent(id)}/report`);
    toast("The report is being written.");
    const deadline = Date.now() + REPORT_MS;
    for (;;) {
      const row = await session.api.get(`jobs/${encodeURIComponent(job)}`);
      if (row.state === "done") break;
      if (row.state === "failed") throw new Error(row.error || "The report failed.");
      if (Date.now() > deadline) throw new Error("The report takes long; ask again later.");
      await new Promise((resolve) => setTimeout(resolve, 700));
    }
    const page = await session.api.get(`incidents/${encodeURIComponent(id)}/report`);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([page], { type: "text/html" }));
    link.download = `${id}.html`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    toast(`Saved ${id}.html`);
  },
};

document.addEventListener("click", async (event) => {
  const target = event.target.closest("button[data-action]");
  const action = target && ACTIONS[target.dataset.action];
  if (!action) return;
  target.disabled = true;
  try {
    await action(target.dataset);
  } catch (error) {
    complain(error);
  } finally {
    target.disabled = false;
  }
});

document.addEventListener("input", (event) => {
  if (event.target.dataset.action !== "filter") return;
  query = event.target.value.trim();
  draw(new Set(["devices"]));
});

$("sign-in").addEventListener("submit", async (event) => {
  event.preventDefault();
  $("sign-in-error").textContent = "";
  connection("starting");
  try {
    await signIn($("token").value.trim());
  } catch (error) {
    signOut(error.status === 401 ? "This token is not valid." : error.message);
  }
});

new ResizeObserver(() => draw(new Set(["campaigns"]))).observe($("accuracy"));

const kept = sessionStorage.getItem(TOKEN_KEY);
if (kept) {
  connection("starting");
  signIn(kept).catch((error) => signOut(error.status === 401 ? "The token is not valid any more." : error.message));
} else {
  signOut();
}
