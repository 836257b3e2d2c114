// What a person who cannot see the page should hear, and whoever looks away should read. Pure.

import { plural, words } from "./format.js";

const byId = (rows) => new Map((rows ?? []).map((row) => [row.id, row]));

/** Sentences about what differs between two states of the store. */
export function differences(before, after) {
  const said = [];
  if (before.devices && after.devices !== before.devices) {
    const old = byId(before.devices);
    const came = after.devices.filter((row) => !old.has(row.id)).map((row) => row.id);
    const online = after.devices.filter((row) => old.has(row.id) && row.online && !old.get(row.id).online).map((row) => row.id);
    const offline = after.devices.filter((row) => old.has(row.id) && !row.online && old.get(row.id).online).map((row) => row.id);
    const failed = after.devices.filter(
      (row) => ["rolled_back", "quarantined"].includes(row.update_status) && old.get(row.id)?.update_status !== row.update_status,
    );
    if (came.length) said.push(`${named(came)} enrolled.`);
    if (online.length) said.push(`${named(online)} online.`);
    if (offline.length) said.push(`${named(offline)} offline.`);
    for (const row of failed) said.push(`${row.id}: update ${words(row.update_status)}.`);
  }
  for (const [kind, title] of [["rollouts", "Rollout"], ["campaigns", "Campaign"], ["incidents", "Incident"]]) {
    if (!before[kind] || after[kind] === before[kind]) continue;
    const old = byId(before[kind]);
    for (const row of after[kind]) {
      const was = old.get(row.id);
      if (!was) said.push(`${title} ${row.id} began: ${words(row.state)}.`);
      else if (was.state !== row.state) said.push(`${title} ${row.id}: ${words(row.state)}.`);
      else if (kind === "campaigns" && was.rounds.length < row.rounds.length) {
        said.push(`${title} ${row.id}: round ${row.rounds.length} of ${row.rounds_planned} committed.`);
      }
    }
  }
  if (before.champions && after.champions !== before.champions && after.champions[0]?.id !== before.champions[0]?.id) {
    const entry = after.champions[0];
    if (entry) said.push(`${entry.release_id} is champion of ${entry.task}.`);
  }
  return said;
}

function named(ids) {
  if (ids.length > 3) return plural(ids.length, "device");
  return ids.join(", ");
}
