// How figures and moments are written. Pure.

const NUMBER = new Intl.NumberFormat("en");

/** 1234567 -> 1,234,567 */
export const count = (value) => NUMBER.format(value);

/** 0.9312 -> 93.1 %; a dash for nothing. */
export const percent = (value) => (Number.isFinite(value) ? `${(value * 100).toFixed(1)} %` : "–");

/** Accuracy of the worse of a release's INT8 forms; not a number when it tells none. */
export function int8Accuracy(metrics) {
  const values = Object.entries(metrics).filter(([name, value]) => name.startsWith("accuracy_int8") && Number.isFinite(value));
  return values.length ? Math.min(...values.map(([, value]) => value)) : NaN;
}

/** 1530 µs -> 1.53 ms */
export function latency(us) {
  if (!Number.isFinite(us) || us <= 0) return "–";
  return us < 1000 ? `${Math.round(us)} µs` : `${(us / 1000).toFixed(us < 10_000 ? 2 : 1)} ms`;
}

/** 1536000 -> 1.5 MB */
export function bytes(size) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  let value = size;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit === 0 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

/** How long ago, in one unit. */
export function age(atMs, nowMs) {
  if (!atMs) return "never";
  const seconds = Math.max(0, Math.floor((nowMs - atMs) / 1000));
  if (seconds < 5) return "now";
  if (seconds < 60) return `${Math.floor(seconds / 5) * 5} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86_400)} d`;
}

/** A span of time: 75 s -> 1 min 15 s */
export function span(ms) {
  const seconds = Math.max(0, Math.round(ms / 1000));
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}

/** Local wall-clock time of a moment, for title attributes. */
export const moment = (atMs) => (atMs ? new Date(atMs).toLocaleString() : "");

/** 14:05:09, or with the date when it was another day. */
export function clock(atMs, nowMs) {
  const at = new Date(atMs);
  const time = at.toLocaleTimeString("en-GB");
  return at.toDateString() === new Date(nowMs).toDateString() ? time : `${at.getMonth() + 1}/${at.getDate()} ${time.slice(0, 5)}`;
}

/** rolled_back -> rolled back */
export const words = (text) => String(text).replaceAll("_", " ");

/** 1 device, 2 devices */
export const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

/** Short decimal of a drift figure. */
export function figure(value) {
  if (!Number.isFinite(value)) return "";
  const shown = value < 0 ? 0 : value;
  return shown >= 10 ? shown.toFixed(0) : shown.toFixed(2).replace(/^0/, "");
}
