// What the console knows, and how each part of it is read again when the control plane says that it changed.

const MINIMUM_MS = 300;

/** Resource name -> how it is read. `topics` are those of /v1/events that make it stale. */
const RESOURCES = {
  summary: { topics: "*", read: (api) => api.get("summary") },
  tasks: { topics: ["releases", "champions"], read: async (api) => (await api.get("tasks")).items },
  devices: { topics: ["devices"], read: async (api) => (await api.get("devices?page_size=500&revoked=false")).items },
  rollouts: { topics: ["rollouts"], read: async (api) => (await api.get("rollouts?page_size=5")).items },
  campaigns: { topics: ["campaigns"], read: async (api) => (await api.get("campaigns?page_size=30")).items },
  campaign: {
    topics: ["campaigns"],
    read: async (api, data) => {
      const task = chosenTask(data);
      const filter = task ? `&task=${encodeURIComponent(task)}` : "";
      const rows = (await api.get(`campaigns?page_size=5${filter}`)).items;
      const row = rows.find((each) => !each.finished) ?? rows[0];
      return row ? api.get(`campaigns/${encodeURIComponent(row.id)}`) : null;
    },
  },
  incidents: { topics: ["incidents"], read: async (api) => (await api.get("incidents?page_size=20")).items },
  releases: { topics: ["releases", "champions"], read: async (api) => (await api.get("releases?page_size=20")).items },
  champions: { topics: ["champions"], read: async (api) => (await api.get("champions?page_size=20")).items },
  lessons: { topics: ["releases", "devices"], read: async (api) => (await api.get("fitness/lessons")).items },
  jobs: { topics: ["jobs"], read: async (api) => (await api.get("jobs?page_size=12")).items },
  audit: { topics: ["audit"], read: async (api) => (await api.get("audit?page_size=25")).items },
  drift: {
    topics: ["drift", "devices"],
    read: (api, data) => {
      const task = chosenTask(data);
      return task ? api.get(`drift?task=${encodeURIComponent(task)}`) : { task: "", features: [], devices: [] };
    },
  },
};

/** The task that charts are about: the chosen one, or the one that was released last. */
export function chosenTask(data) {
  const known = (data.tasks ?? []).filter((task) => task.releases > 0).map((task) => task.name);
  if (known.includes(data.task)) return data.task;
  const newest = (data.releases ?? [])[0]?.task;
  return known.includes(newest) ? newest : (known[0] ?? "");
}

export class Store {
  #api;
  #onChange;
  #onError;
  #stale = new Set();
  #running = false;

  /** @param onChange called with (data, before, names of the resources that were read) */
  constructor(api, { onChange, onError }) {
    this.#api = api;
    this.#onChange = onChange;
    this.#onError = onError;
    this.data = { clockOffset: 0 };
  }

  /** Read everything; rejects when the first read is refused. */
  async load() {
    await this.#read(["summary"]);
    await this.#read(["tasks", "devices", "rollouts", "campaigns", "incidents", "releases", "champions", "lessons", "jobs", "audit"]);
    await this.#read(["drift", "campaign"]);
  }

  /** These topics changed: read what depends on them, soon, once. */
  changed(topics) {
    for (const [name, resource] of Object.entries(RESOURCES)) {
      if (resource.topics === "*" || resource.topics.some((topic) => topics.includes(topic))) this.#stale.add(name);
    }
    void this.#drain();
  }

  /** Everything may have changed. */
  changedAll() {
    for (const name of Object.keys(RESOURCES)) this.#stale.add(name);
    void this.#drain();
  }

  /** Show another task. */
  choose(task) {
    this.data.task = task;
    this.#stale.add("drift");
    this.#stale.add("campaign");
    this.#onChange(this.data, this.data, new Set(["tasks"]));
    void this.#drain();
  }

  async #drain() {
    if (this.#running) return;
    this.#running = true;
    try {
      while (this.#stale.size > 0) {
        const names = [...this.#stale];
        this.#stale.clear();
        const started = performance.now();
        try {
          await this.#read(names);
        } catch (error) {
          this.#onError(error);
        }
        const rest = MINIMUM_MS - (performance.now() - started);
        if (rest > 0) await new Promise((resolve) => setTimeout(resolve, rest));
      }
    } finally {
      this.#running = false;
    }
  }

  async #read(names) {
    const values = await Promise.all(names.map((name) => RESOURCES[name].read(this.#api, this.data)));
    const before = { ...this.data };
    names.forEach((name, index) => { this.data[name] = values[index]; });
    if (names.includes("summary")) this.data.clockOffset = this.data.summary.now_ms - Date.now();
    this.#onChange(this.data, before, new Set(names));
  }
}
