// @ts-check
/** List of the project's jobs, newest first. */

import { html, useEffect, useState } from "../vendor/htm-preact.js";
import { Fault, Loading, Note, PageHead } from "../components/basics.js";
import { CopiedCode } from "../components/code.js";
import { TabPanel, Tabs } from "../components/controls.js";
import { useOffer, useUploadNames } from "../hooks.js";
import { modelName, runsIn, stateName } from "../words.js";
import { MOST, groupOf, labelsOf, matches, sorted, useJobs } from "./jobs/listing.js";
import { SelectionBar, saveJobs } from "./jobs/selection.js";
import { JobsTable } from "./jobs/table.js";

const STATES = ["running", "queued", "paused", "succeeded", "failed", "cancelled"];
const TARGETS = ["research", "adaptive", "stock"];
const PAGE = 25;
const NO_FILTERS = { state: "", search: "", model: "", target: "", label: "" };

/** @param {{ service: any, query: URLSearchParams }} props `label`: only jobs with this label, as key=value */
export function Jobs({ service, query }) {
  const [filters, setFilters] = useState({ ...NO_FILTERS, label: query.get("label") || "" });
  const [sort, setSort] = useState({ by: "created", down: true });
  const [page, setPage] = useState(0);
  const [selected, setSelected] = useState(/** @type {string[]} */ ([]));
  const uploads = useUploadNames();
  const { jobs, error, complete, loadMore, reload } = useJobs();
  const matching = sorted((jobs || []).filter((job) => matches(job, filters, uploads)), sort, uploads);
  const shown = matching.slice(page * PAGE, (page + 1) * PAGE);
  const needsMore = jobs !== null && !complete && matching.length <= (page + 1) * PAGE;
  useEffect(() => {
    if (needsMore) loadMore();
  }, [needsMore, jobs?.length]);
  const filter = (/** @type {Partial<typeof NO_FILTERS>} */ changes) => {
    setFilters((old) => ({ ...old, ...changes }));
    setPage(0);
  };
  const toggle = (/** @type {string} */ id) => setSelected(selected.includes(id) ? selected.filter((other) => other !== id) : [...selected, id]);
  const none = jobs !== null && !jobs.length;
  return html`<${PageHead} title="Jobs" about="Every compression of this project, newest first.">
      ${none ? null : html`<button type="button" disabled=${!matching.length} onClick=${() => saveJobs(matching, uploads)}>Export CSV</button>`}
      <a class="button" href="#/new?sweep">New sweep</a><a class="button main" href="#/new">New job</a>
    <//>
    ${service?.workers === 0 ? html`<div class="gap"><${Note} kind="warn" role="status">No workers are running: jobs stay queued until <span class="mono">intraslice worker</span> is started.<//></div>` : null}
    ${none ? html`<${Welcome} />` : null}
    <${Fault} error=${error} />
    ${jobs === null && !error ? html`<${Loading} what="the jobs" />` : null}
    ${none ? html`<p class="sub">No jobs yet. Start with “New job”.</p>` : null}
    ${jobs?.length ? html`<${Tabs} label="State" id="jobs" tabs=${stateTabs(jobs, service, complete)} value=${filters.state || "all"} choose=${(/** @type {string} */ state) => filter({ state: state === "all" ? "" : state })} />
      <${TabPanel} id="jobs" value=${filters.state || "all"}>
        <${Filters} jobs=${jobs} filters=${filters} filter=${filter} uploads=${uploads} />
        ${shown.length ? html`<${JobsTable} jobs=${shown} selected=${selected} toggle=${toggle} sort=${sort} setSort=${setSort} uploads=${uploads} reload=${reload} />` : html`<p class="sub" role="status">${needsMore && jobs.length < MOST ? "Searching older jobs …" : "No jobs match these filters."}</p>`}
        <div class="actions pages">
          ${page > 0 ? html`<button type="button" onClick=${() => setPage(page - 1)}>Newer</button>` : null}
          ${matching.length > (page + 1) * PAGE ? html`<button type="button" onClick=${() => setPage(page + 1)}>Older</button>` : null}
          ${!complete && jobs.length >= MOST ? html`<span class="sub small">Only the newest ${MOST} jobs are listed.</span>` : null}
        </div>
      <//>
      <${SelectionBar} jobs=${jobs.filter((job) => selected.includes(job.id))} clear=${() => setSelected([])} reload=${reload} uploads=${uploads} />` : null}`;
}

/** Tabs of the states with their counts; a count is left out where not all of its jobs are known. @param {any[]} jobs @param {any} service @param {boolean} complete */
function stateTabs(jobs, service, complete) {
  const known = (/** @type {string} */ state) => jobs.filter((job) => groupOf(job.state) === state).length;
  const count = (/** @type {string} */ state) => (complete ? known(state) : service?.jobs[state]);
  return [
    { value: "all", title: "All", count: complete ? jobs.length : `${jobs.length}+` },
    ...STATES.map((state) => ({ value: state, title: stateName(state), count: count(state) })),
  ];
}

/** @param {{ jobs: any[], filters: typeof NO_FILTERS, filter: (changes: Partial<typeof NO_FILTERS>) => void, uploads: import("../words.js").Names }} props */
function Filters({ jobs, filters, filter, uploads }) {
  const models = [...new Set(jobs.map((job) => modelName(job.model, uploads)))].sort();
  const labels = [...new Set([...jobs.flatMap((job) => labelsOf(job).map((label) => label.join("="))), filters.label])].filter(Boolean).sort();
  return html`<div class="filters">
    <input id="search" type="search" placeholder="Search by name, model or ID   /" aria-label="Search jobs" value=${filters.search} onInput=${(/** @type {any} */ e) => filter({ search: e.target.value })} />
    <select aria-label="Model" value=${filters.model} onChange=${(/** @type {any} */ e) => filter({ model: e.target.value })}>
      <option value="">All models</option>${models.map((name) => html`<option value=${name}>${name}</option>`)}
    </select>
    <select aria-label="Runs in" value=${filters.target} onChange=${(/** @type {any} */ e) => filter({ target: e.target.value })}>
      <option value="">All runtimes</option>${TARGETS.map((target) => html`<option value=${target}>${runsIn(target)}</option>`)}
    </select>
    ${labels.length ? html`<select aria-label="Label" value=${filters.label} onChange=${(/** @type {any} */ e) => filter({ label: e.target.value })}>
      <option value="">All labels</option>${labels.map((label) => html`<option value=${label}>${label}</option>`)}
    </select>` : null}
  </div>`;
}

/** First-run card: shown while the project has no jobs. */
function Welcome() {
  const preset = useOffer()?.packages[0];
  return html`<section class="card gap" aria-label="Introduction"><div class="body welcome">
    <div class="stack"><h2>Make a language model smaller and faster</h2>
      <p class="sub">IntraSlice removes dimensions inside attention and MLP, refits the weights that read them, and compares the result with the original. You get an ordinary safetensors checkpoint for transformers, vLLM or llama.cpp.</p>
      <div class="actions">
        ${preset ? html`<a class="button main" href=${`#/new?package=${encodeURIComponent(preset)}`}>Try it with ${preset}</a>` : null}
        <a class=${`button ${preset ? "" : "main"}`} href="#/models">Bring your own model</a>
      </div></div>
    <div><h3 class="gap">Or from a terminal</h3><${CopiedCode} label="Command" text=${`intraslice submit package:${preset || "NAME"} \\
  --ratio 0.1 --download ./small \\
  --url ${location.origin}`} /></div>
  </div></section>`;
}
