// @ts-check
/** API reference: Swagger UI whose requests carry the API key of the session. */

/** Where the dashboard keeps the key of the session, too (/dashboard/api.js). */
const STORED = "intraslice-key";

/** Follow the reader's colour scheme, as Swagger UI does by a class. */
const dark = matchMedia("(prefers-color-scheme: dark)");
const showScheme = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", showScheme);
showScheme();

/** @param {string} id @returns {any} */
const element = (id) => document.getElementById(id);

const field = element("key");
const forget = element("forget");
const state = element("key-state");

/**
 * Add the key to requests to this service; the bucket of a signed link must not see it.
 * @param {any} request
 */
function withKey(request) {
  const key = sessionStorage.getItem(STORED);
  const sameOrigin = new URL(request.url, location.href).origin === location.origin;
  if (key !== null && sameOrigin) request.headers.Authorization = `Bearer ${key}`;
  return request;
}

/** Say whether requests can be tried, and with which key. */
async function showState() {
  const key = sessionStorage.getItem(STORED);
  forget.hidden = key === null;
  if (key === null) {
    state.textContent = "Enter an API key to try requests. A service without authentication needs none.";
    return;
  }
  const headers = { Authorization: `Bearer ${key}` };
  const response = await fetch("/v1/service", { headers }).catch(() => null);
  if (response === null) state.textContent = "The service is not responding.";
  else if (response.ok) state.textContent = "Requests are sent with the API key of this session.";
  else if (response.status === 401) state.textContent = "Invalid API key";
  else state.textContent = `The service answered HTTP ${response.status} to the key.`;
}

element("key-form").addEventListener("submit", (/** @type {Event} */ event) => {
  event.preventDefault();
  const key = field.value.trim();
  if (key) sessionStorage.setItem(STORED, key);
  field.value = "";
  showState();
});
forget.addEventListener("click", () => {
  sessionStorage.removeItem(STORED);
  showState();
});

// @ts-ignore  // defined by swagger-ui-bundle.js
window.ui = SwaggerUIBundle({
  dom_id: "#reference",
  url: "/openapi.json",
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  displayRequestDuration: true,
  docExpansion: "list",
  filter: true,
  requestInterceptor: withKey,
  tryItOutEnabled: true,
  validatorUrl: null, // it would ask a server on the internet
});
showState();
