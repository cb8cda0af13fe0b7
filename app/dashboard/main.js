// @ts-check
/** The shell: login, navigation, and the notice of an unavailable service. */

import { html, render, useEffect, useState } from "./vendor/htm-preact.js";
import { get, hasKey, keepKey } from "./api.js";
import { Fault, onFault, useLoaded, useTitle } from "./parts.js";
import { Jobs } from "./views/jobs.js";
import { Job } from "./views/job.js";
import { Submit } from "./views/submit.js";
import { Sweep, Sweeps } from "./views/sweeps.js";
import { Compare } from "./views/compare.js";
import { Keys } from "./views/keys.js";
import { Uploads } from "./views/uploads.js";
import { Webhooks } from "./views/webhooks.js";

const THEME = "intraslice-theme";
/** @type {[RegExp, any, string][]} paths after the #, their views and titles */
const ROUTES = [
  [/^\/jobs\/([\w-]+)$/, Job, "Job"],
  [/^\/new$/, Submit, "New job"],
  [/^\/sweeps\/([\w-]+)$/, Sweep, "Sweep"],
  [/^\/sweeps$/, Sweeps, "Sweeps"],
  [/^\/compare$/, Compare, "Compare"],
  [/^\/uploads$/, Uploads, "Models and texts"],
  [/^\/keys$/, Keys, "Keys"],
  [/^\/webhooks$/, Webhooks, "Webhooks"],
];

function useHash() {
  const [hash, setHash] = useState(location.hash);
  useEffect(() => {
    const follow = () => {
      setHash(location.hash);
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
    <h1>IntraSlice</h1>
    <form onSubmit=${enter} style="max-width: 26rem">
      <p>${rejected ? "The key is no longer valid." : "This service requires an API key."}</p>
      <div class="field">
        <label for="key">API key</label>
        <input id="key" type="password" autocomplete="off" value=${key} onInput=${(/** @type {any} */ e) => setKey(e.target.value)} />
        <p class="hint">Stored in this tab only. Create one with <span class="mono">intraslice keys create NAME</span>.</p>
      </div>
      <button class="main" disabled=${!key.trim()}>Log in</button>
      <${Fault} error=${error} />
    </form>
  </main>`;
}

/** @param {{ service: any, hash: string }} props */
function Top({ service, hash }) {
  const links = [["#/jobs", "Jobs"], ["#/new", "New job"], ["#/sweeps", "Sweeps"], ["#/uploads", "Models and texts"]];
  if (service?.scopes.includes("admin")) links.push(["#/keys", "Keys"], ["#/webhooks", "Webhooks"]);
  const here = (/** @type {string} */ link) => (hash || "#/jobs").startsWith(link);
  return html`<header class="top">
    <a class="skip" href="#main" onClick=${(/** @type {Event} */ e) => { e.preventDefault(); document.getElementById("main")?.focus(); }}>Skip to the content</a>
    <a class="name" href="#/jobs">IntraSlice</a>
    <nav aria-label="Views">
      ${links.map(([link, name]) => html`<a href=${link} aria-current=${here(link) ? "page" : undefined}>${name}</a>`)}
    </nav>
    <a href="/docs">API</a>
    <button type="button" onClick=${switchTheme} aria-label="Switch between light and dark">◐</button>
    ${hasKey() ? html`<button type="button" onClick=${() => { keepKey(null); location.reload(); }}>Log out</button>` : null}
  </header>`;
}

function switchTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = document.documentElement.dataset.theme || (dark ? "dark" : "light");
  const next = now === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  localStorage.setItem(THEME, next);
  window.dispatchEvent(new Event("theme"));
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
  const [pattern, View, title] = ROUTES.find(([route]) => route.test(path)) || [/$/, Jobs, "Jobs"];
  useTitle(locked ? "Log in" : title);
  if (locked) return html`<${Login} rejected=${hasKey()} done=${() => setLocked(false)} />`;
  const id = (pattern.exec(path) || [])[1];
  return html`<${Top} service=${service.data} hash=${hash} />
    ${unavailable ? html`<div class="banner" role="status">The service is not responding. Retrying …</div>` : null}
    <main id="main" tabindex="-1">
      <${View} key=${hash} id=${id} query=${new URLSearchParams(query)} service=${service.data} />
    </main>`;
}

const theme = localStorage.getItem(THEME);
if (theme) document.documentElement.dataset.theme = theme;
const place = /** @type {HTMLElement} */ (document.getElementById("app"));
place.textContent = "";
render(html`<${App} />`, place);
