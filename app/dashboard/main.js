// @ts-check
/** The shell: login, navigation, worker status, and the notice of an unavailable service. */

import { html, render, useEffect, useState } from "./vendor/htm-preact.js";
import { get, hasKey, keepKey } from "./api.js";
import { Fault, Loading } from "./components/basics.js";
import { onFault, useLoaded, useTitle } from "./hooks.js";
import { Shortcuts } from "./shortcuts.js";
import { Jobs } from "./views/jobs.js";
import { NotFound } from "./views/missing.js";

const THEME = "intraslice-theme";
/** @type {[RegExp, () => Promise<any>, string][]} paths after the #, their views, which are loaded when they are opened, and titles */
const ROUTES = [
  [/^(?:\/|\/jobs)?$/, async () => Jobs, "Jobs"],
  [/^\/jobs\/([\w-]+)$/, async () => (await import("./views/job.js")).Job, "Job"],
  [/^\/new$/, async () => (await import("./views/submit.js")).Submit, "New job"],
  [/^\/sweeps\/([\w-]+)$/, async () => (await import("./views/sweeps.js")).Sweep, "Sweep"],
  [/^\/sweeps$/, async () => (await import("./views/sweeps.js")).Sweeps, "Sweeps"],
  [/^\/compare$/, async () => (await import("./views/compare.js")).Compare, "Compare"],
  [/^\/(?:models|uploads)$/, async () => (await import("./views/models.js")).Models, "Models"],
  [/^\/datasets$/, async () => (await import("./views/datasets.js")).Datasets, "Datasets"],
  [/^\/workers$/, async () => (await import("./views/workers.js")).Workers, "Workers"],
  [/^\/keys$/, async () => (await import("./views/keys.js")).Keys, "API keys"],
  [/^\/webhooks$/, async () => (await import("./views/webhooks.js")).Webhooks, "Webhooks"],
  [/^\/audit$/, async () => (await import("./views/audit.js")).Audit, "Audit log"],
];
/** @type {[RegExp, () => Promise<any>, string]} */
const UNKNOWN = [/$/, async () => NotFound, "Not found"];
const LINKS = [["#/jobs", "Jobs"], ["#/sweeps", "Sweeps"], ["#/models", "Models"], ["#/datasets", "Datasets"]];
const ADMIN_LINKS = [["#/keys", "API keys"], ["#/webhooks", "Webhooks"], ["#/audit", "Audit log"]];

function useHash() {
  const [hash, setHash] = useState(location.hash);
  useEffect(() => {
    const follow = () => {
      setHash(location.hash);
      window.scrollTo(0, 0);
      document.getElementById("main")?.focus();
    };
    window.addEventListener("hashchange", follow);
    return () => window.removeEventListener("hashchange", follow);
  }, []);
  return hash;
}

/** @param {{ rejected: boolean, done: () => void }} props */
function Login({ rejected, done }) {
  const [key, setKey] = useState("");
  const [error, setError] = useState(/** @type {any} */ (null));
  const enter = async (/** @type {Event} */ event) => {
    event.preventDefault();
    keepKey(key.trim());
    try {
      await get("/v1/service");
      done();
    } catch (failure) {
      keepKey(null);
      const invalid = /** @type {any} */ (failure).status === 401;
      setError(invalid ? { message: "Invalid API key" } : failure);
    }
  };
  return html`<main id="main" tabindex="-1">
    <form class="card login" onSubmit=${enter}><div class="body stack">
      <h1>IntraSlice</h1>
      <p class="sub">${rejected ? "The key is no longer valid." : "This service requires an API key."}</p>
      <div>
        <label for="key">API key</label>
        <input id="key" type="password" autocomplete="off" value=${key} aria-describedby="key-hint" onInput=${(/** @type {any} */ e) => setKey(e.target.value)} />
        <p class="hint" id="key-hint">Stored in this tab only. Create one with <span class="mono">intraslice keys create NAME</span>.</p>
      </div>
      <button class="main block" disabled=${!key.trim()}>Log in</button>
      <${Fault} error=${error} />
    </div></form>
  </main>`;
}

/** @param {{ service: any, hash: string }} props */
function Top({ service, hash }) {
  const here = (/** @type {string} */ link) => (hash.length > 2 ? hash : "#/jobs").startsWith(link) || (link === "#/jobs" && /^#\/(new|compare)/.test(hash));
  const skip = (/** @type {Event} */ event) => {
    event.preventDefault();
    document.getElementById("main")?.focus();
  };
  return html`<header class="top">
    <a class="skip" href="#main" onClick=${skip}>Skip to the content</a>
    <a class="brand" href="#/jobs"><${Mark} /><span>IntraSlice</span></a>
    <nav aria-label="Main">
      ${LINKS.map(([link, name]) => html`<a href=${link} aria-current=${here(link) ? "page" : undefined}>${name}</a>`)}
    </nav>
    <div class="right">
      ${service ? html`<${Workers} service=${service} />` : null}
      <a class="small" href="/docs">API</a>
      <button type="button" class="ghost small" onClick=${switchTheme} aria-label="Switch between light and dark">◐</button>
      <${ProjectMenu} key=${hash} service=${service} />
    </div>
  </header>`;
}

const Mark = () => html`<svg viewBox="0 0 20 20" aria-hidden="true" fill="var(--accent)">
  <rect x="2" y="2" width="16" height="4" rx="1.5" /><rect x="2" y="8" width="11" height="4" rx="1.5" opacity=".75" /><rect x="2" y="14" width="7" height="4" rx="1.5" opacity=".5" />
</svg>`;

/** @param {{ service: any }} props */
function Workers({ service }) {
  const { workers, busy_workers: busy, jobs } = service;
  const [running, queued] = [jobs.running || 0, jobs.queued || 0];
  const detail = workers === null ? "The queue does not respond, so the number of workers is unknown." : `${busy} of ${workers} ${workers === 1 ? "worker" : "workers"} busy`;
  const [state, text] =
    workers === 0 ? ["alone", "No workers"]
    : running + queued > 0 ? [running ? "running" : "queued", `${running} running · ${queued} queued`]
    : workers === null ? ["", "Workers unknown"]
    : ["healthy", `${workers} ${workers === 1 ? "worker" : "workers"} idle`];
  return html`<a href="#/workers" class=${`state wide ${state}`} title=${detail}>${text}<span class="hidden">. ${detail}</span></a>`;
}

/** @param {{ service: any }} props */
function ProjectMenu({ service }) {
  const admin = service?.scopes.includes("admin");
  return html`<details class="menu">
    <summary>${service?.project || "Project"}</summary>
    <div class="items">
      ${service ? html`<p class="sub">IntraSlice ${service.version}</p>` : null}
      <a href="#/workers">Workers</a>
      ${admin ? ADMIN_LINKS.map(([link, name]) => html`<a href=${link}>${name}</a>`) : null}
      <button type="button" onClick=${() => window.dispatchEvent(new Event("shortcuts"))}>Keyboard shortcuts</button>
      ${hasKey() ? html`<button type="button" onClick=${() => { keepKey(null); location.reload(); }}>Log out</button>` : null}
    </div>
  </details>`;
}

function switchTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = document.documentElement.dataset.theme || (dark ? "dark" : "light");
  const next = now === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  localStorage.setItem(THEME, next);
  window.dispatchEvent(new Event("theme"));
}

/** A view once its modules are loaded. @param {{ load: () => Promise<any>, [prop: string]: any }} props */
function View({ load, ...props }) {
  const [loaded, setLoaded] = useState({ view: load === ROUTES[0][1] ? Jobs : null, error: /** @type {any} */ (null) });
  useEffect(() => {
    load().then((view) => setLoaded({ view, error: null }), () => setLoaded({ view: null, error: { message: "This page could not be loaded. Reload it to try again." } }));
  }, []);
  if (loaded.error) return html`<${Fault} error=${loaded.error} />`;
  return loaded.view ? html`<${loaded.view} ...${props} />` : html`<${Loading} />`;
}

function App() {
  const hash = useHash();
  const [unavailable, setUnavailable] = useState(false);
  const [locked, setLocked] = useState(false);
  onFault((error) => {
    setUnavailable(error !== null && error.status !== 401);
    if (error?.status === 401) setLocked(true);
  });
  const service = useLoaded((signal) => get("/v1/service", signal), [locked], 5);
  const [path, query] = hash.slice(1).split("?");
  const [pattern, load, title] = ROUTES.find(([route]) => route.test(path)) || UNKNOWN;
  useTitle(locked ? "Log in" : title);
  if (locked) return html`<${Login} rejected=${hasKey()} done=${() => setLocked(false)} />`;
  const id = (pattern.exec(path) || [])[1];
  return html`<${Top} service=${service.data} hash=${hash} />
    <main id="main" tabindex="-1">
      ${unavailable ? html`<div class="note warn gap" role="status">The service is not responding. Retrying …</div>` : null}
      <${View} key=${hash} load=${load} id=${id} query=${new URLSearchParams(query)} service=${service.data} />
    </main>
    <${Shortcuts} />`;
}

const theme = localStorage.getItem(THEME);
if (theme) document.documentElement.dataset.theme = theme;
const place = /** @type {HTMLElement} */ (document.getElementById("app"));
place.textContent = "";
render(html`<${App} />`, place);
