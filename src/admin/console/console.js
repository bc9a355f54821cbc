// The console of pulsegate. It shows what the other routes say, with the same words and numbers. Text that others chose reaches the page as text only.
"use strict";

const $ = (id) => document.getElementById(id);
const KEPT = 600; // seconds of the plots
const PAGE = 50;
const CHANGES = document.body.dataset.changes; // open, token, never
const PHASES = ["queued", "connecting", "open", "half_closed", "closing"];
const CONDITIONS = ["alive", "quiet", "suspect", "stalled", "undelivered", "phantom"];
const VIEWS = ["overview", "listeners", "connections", "session", "waiting", "found", "config"];
const LINE = 50; // holders, and clients that wait, of the one line that is shown
const MANY = 1000; // sessions; of more than these a list is asked for each 5 s where each has to be compared
const WATCHED = 300000; // ms of the time line
const NOW = 400; // of 600: where it is on the time line
const RENEW = 7; // days: from then on pulsegate warns, too
const LEGS = { downstream: "Downstream: client to pulsegate", upstream: "Upstream: pulsegate to the service" };
// What keeps a session from being ended by a clock.
const UNLESS = {
  dead: "unless heard", stalled: "unless it takes data", undelivered: "unless it acknowledges", silent: "unless it sends",
  unresponsive: "unless it answers", idle_timeout: "unless a byte passes", half_close_timeout: "unless a byte passes",
  first_response_timeout: "unless the service answers", upstream_phantom: "unless the service answers",
  queue_timeout: "unless a place is free", connect_timeout: "unless the service accepts",
};
// What happens next where there is no place (limits.on_full).
const ON_FULL = {
  reject: "the next client is reset",
  queue: "the first who waits has the next place",
  verify: "the peers of the holders are asked each second; one that is gone leaves its place to the first who waits",
  replace: "the holder that is quiet longest is ended for the next client, alive or not",
  shed: "a dead holder is ended, else one that is half-closed, mute or quiet for some seconds; where all are active, the next client is reset",
};

let summary = null;
let points = [];
let found = { now: 0, groups: [], ends: [] };
let foundTotal = -1;
let limit = PAGE;
let sort = "id";
let paused = false;
let events = null;
let asking = false;
let listed = 0; // when the sessions were last asked for
let judged = 0; // when the host was
let seen = { id: null, samples: [], marks: {} }; // the session that is shown, while it is

// --- Numbers, as the tables of the subcommands have them ---------------------------------

function age(ms) {
  const s = Math.floor(ms / 1000);
  const two = (n) => String(n).padStart(2, "0");
  if (s < 60) return `${s}.${Math.floor((ms % 1000) / 100)}s`;
  if (s < 3600) return `${Math.floor(s / 60)}m${two(s % 60)}s`;
  if (s < 86400) return `${Math.floor(s / 3600)}h${two(Math.floor((s % 3600) / 60))}m`;
  return `${Math.floor(s / 86400)}d${two(Math.floor((s % 86400) / 3600))}h`;
}

function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (n >= 1024 && unit < 4) { n /= 1024; unit += 1; }
  return `${unit === 0 || n >= 100 ? Math.round(n) : n.toFixed(1)} ${units[unit]}`;
}

// What the filter for peers accepts.
const isAddress = (text) => /^[\d.]+(:\d+)?$|^\[?[\da-f:.]+\]?(:\d+)?$/i.test(text);
const rtt = (us) => `${Math.floor(us / 1000)}.${Math.floor((us % 1000) / 100)}ms`;
const both = (legs) => legs.downstream + legs.upstream;
const sum = (of) => (summary ? summary.listeners.reduce((all, l) => all + of(l), 0) : 0);
const peer = (end) => (end.leg === "upstream" ? end.upstream : end.downstream) || "-";

// --- The page ------------------------------------------------------------------------------

function h(tag, properties, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties || {})) {
    if (value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((c) => c !== null && c !== undefined).map(node));
  return element;
}

function node(child) {
  return child instanceof Node ? child : document.createTextNode(String(child));
}

// Whoever goes through the page by keyboard keeps the place when it is drawn again.
function draw(element, ...children) {
  const active = document.activeElement;
  const key = element.contains(active) && (active.getAttribute("href") || active.dataset.key);
  element.replaceChildren(...children.flat());
  if (!key) return;
  const same = [...element.querySelectorAll("a, button")];
  same.find((e) => (e.getAttribute("href") || e.dataset.key) === key)?.focus();
}

// Columns: [title, sort key or null, "n" where it is a number].
function table(element, columns, rows, none) {
  const head = columns.map(([title, key, kind]) => {
    const content = key ? h("button", { type: "button", "data-key": key, onclick: () => sortBy(key) }, title) : title;
    const order = key && key === sort ? (key === "id" ? "ascending" : "descending") : undefined;
    return h("th", { scope: "col", class: kind, "aria-sort": order }, content);
  });
  const empty = h("tr", {}, h("td", { class: "none", colspan: columns.length }, none));
  draw(element, h("thead", {}, h("tr", {}, head)), h("tbody", {}, rows.length ? rows : [empty]));
}

const n = (value, bad) => h("td", { class: bad ? `n ${bad}` : "n" }, value);
const cell = (value, kind) => h("td", { class: kind }, value);

function say(text) {
  $("message").hidden = !text;
  $("message").textContent = text || "";
}

async function ask(path, options) {
  const answer = await fetch(path, { cache: "no-store", ...options });
  const text = await answer.text();
  if (!answer.ok) throw new Error(text.trim() || answer.statusText);
  return answer.headers.get("content-type").startsWith("application/json") ? JSON.parse(text) : text;
}

// A change; the token stays in the memory of this page.
function change(method, path) {
  const token = $("token").elements.token.value;
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  return ask(path, { method, headers });
}

// Asks once; the reason, or null.
function sure(question, wantsReason) {
  const dialog = $("ask");
  $("question").textContent = question;
  $("why").hidden = !wantsReason;
  const input = dialog.querySelector("input");
  input.value = "";
  dialog.showModal();
  // Not by its close event: that comes later, perhaps to the next question.
  return new Promise((resolve) => {
    const over = new AbortController();
    const answer = (value) => { over.abort(); resolve(value); };
    const submitted = (event) => answer(event.submitter.value === "yes" ? input.value : null);
    dialog.addEventListener("submit", submitted, { signal: over.signal });
    dialog.addEventListener("cancel", () => answer(null), { signal: over.signal });
  });
}

// --- Overview ------------------------------------------------------------------------------

function tile(title, big, small, kind) {
  const value = h("p", { class: kind ? `big ${kind}` : "big" }, big);
  return h("section", { class: "tile" }, h("h3", {}, title), value, h("p", { class: "quiet" }, small));
}

function svg(tag, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  Object.entries(attributes).forEach(([name, value]) => element.setAttribute(name, value));
  return element;
}

function plot(title, now, shapes) {
  const picture = svg("svg", { viewBox: "0 0 600 100", preserveAspectRatio: "none", role: "img" });
  picture.setAttribute("aria-label", `${title}: ${now}`);
  picture.append(svg("line", { class: "base", x1: 0, x2: 600, y1: 99.5, y2: 99.5 }), ...shapes);
  return h("section", { class: "tile" }, h("h3", {}, title), h("p", {}, now), picture);
}

function line(of) {
  if (points.length < 2) return [];
  const end = points[points.length - 1].now;
  const most = Math.max(1, ...points.map(of));
  const x = (p) => 600 - (600 * (end - p.now)) / Math.max(30, end - points[0].now);
  const at = points.map((p) => `${x(p).toFixed(1)},${(98 - (94 * of(p)) / most).toFixed(1)}`);
  const first = x(points[0]);
  const area = svg("polygon", { class: "area", points: `${first},100 ${at.join(" ")} 600,100` });
  return [area, svg("polyline", { class: "line", points: at.join(" ") })];
}

// Each end that a proof of silence led to, against the promise of its session: D, and 5 % of it or 0.3 s.
function delays() {
  const proven = found.ends.filter((e) => e.silent_ms && e.reason.endsWith("_dead"));
  return proven.map(({ silent_ms: silent, detect_within_ms: d }) => ({ share: silent / d, late: silent > d + Math.max(d / 20, 300) }));
}

// Where clients are not taken to, or only for want of another.
function lost() {
  const all = (summary?.listeners || []).filter((l) => l.endpoints_up < l.endpoints);
  $("lost").hidden = !all.length;
  const links = all.map((l, i) => [i ? ", " : "", h("a", { href: "#/listeners" }, `${l.listener} ${l.endpoints - l.endpoints_up} of ${l.endpoints}`)]);
  draw($("lost"), "Endpoints down or ejected: ", ...links);
}

function overview() {
  if (!summary) return;
  const halfOpen = sum((l) => both(l.half_open));
  const hung = sum((l) => both(l.stalled) + both(l.undelivered) + l.phantom);
  const day = found.groups.reduce((all, g) => all + g.times, 0);
  const measured = delays();
  const shares = measured.map((m) => m.share);
  const slowest = Math.max(0, ...shares);
  const legs = (of) => `${sum((l) => of(l).downstream)} downstream, ${sum((l) => of(l).upstream)} upstream`;
  draw($("tiles"),
    tile("Sessions", summary.sessions, `${sum((l) => l.queued)} clients wait for a place`),
    tile("Half-open now", halfOpen, legs((l) => l.half_open), halfOpen ? "bad" : "good"),
    tile("Stalled, undelivered, phantom now", hung, `${legs((l) => l.stalled)} stalled`, hung ? "warn" : "good"),
    tile("Found in 24 hours", day, `${sum((l) => l.found)} since the start; the last 200 are kept`, day ? "warn" : "good"),
    tile("Slowest detection", shares.length ? `${Math.round(slowest * 100)} %` : "-", "of D after the last sign of life, of the last 200; 105 %, or D and 0.3 s, are promised",
      measured.some((m) => m.late) ? "bad" : "good"),
    tile("Live peers killed as dead", 0, "by construction: no verdict without unanswered questions", "good"),
  );
  lost();
  const last = points[points.length - 1];
  const risen = (of) => points.slice(1).reduce((all, p) => all + of(p), 0);
  const shown = `in ${age(1000 * (last.now - points[0].now))}`;
  const dots = shares.slice(0, 100).reverse().map((share, i, all) => {
    const x = (600 * (i + 0.5)) / Math.max(all.length, 20);
    return svg("ellipse", { class: "dot", cx: x, cy: 98 - Math.min(share, 1.25) * 75, rx: 5, ry: 3.3 });
  });
  draw($("plots"),
    plot("Sessions", `${summary.sessions}, from ${Math.min(...points.map((p) => p.sessions))} ${shown}`, line((p) => p.sessions)),
    plot("Found", `${risen((p) => p.foundNew)} ${shown}`, line((p) => p.foundNew)),
    plot("Stalled, undelivered, phantom", `${hung}, at most ${Math.max(...points.map((p) => p.hung))} ${shown}`, line((p) => p.hung)),
    plot("Connects failed", `${risen((p) => p.failedNew)} ${shown}`, line((p) => p.failedNew)),
    plot("Throughput", `${bytes(last.rate)}/s, at most ${bytes(Math.max(...points.map((p) => p.rate)))}/s ${shown}`, line((p) => p.rate)),
    plot("Detection delay against D (dashed)", shares.length ? `slowest ${Math.round(slowest * 100)} % of D` : "none yet",
      [svg("line", { class: "limit", x1: 0, x2: 600, y1: 23, y2: 23 }), ...dots]),
  );
  groups($("worst"), found.groups.slice(0, 5));
}

function groups(element, list) {
  const rows = list.map((g) => h("tr", { class: "first" },
    cell(g.times), cell(isAddress(g.peer) ? h("a", { href: `#/connections?peer=${encodeURIComponent(g.peer)}` }, g.peer) : g.peer), cell(g.reason),
    cell(g.listener), n(`${age(1000 * (found.now - g.last_at))} ago`)));
  const columns = [["Times", null], ["Peer", null], ["Reason", null], ["Listener", null], ["Last", null, "n"]];
  table(element, columns, rows, "no peer was found gone or hanging");
}

// The host is looked at once a minute while somebody looks.
async function host() {
  if (!summary || summary.now - judged < 60) return;
  const { worst, checks } = await ask("doctor");
  judged = summary.now;
  const bad = checks.filter((c) => ["warn", "fail"].includes(c.status));
  const kind = { fail: "bad", warn: "warn" };
  const names = bad.map((c) => `${c.status} ${c.check}`).join(", ");
  const good = checks.length ? `${checks.length} checks, nothing to do` : "not judged by this process";
  $("host-line").textContent = `${names || good} (pulsegate doctor)`;
  $("host-line").className = kind[worst] || "good";
  const rows = checks.map((c) => h("tr", { class: "first" }, cell(c.status, kind[c.status]), cell(c.check), cell(c.found, "wrap"),
    cell(c.meaning, "wrap"), cell(c.setting || "", "wrap")));
  const columns = ["Status", "Check", "Found", "Meaning", "Set"].map((name) => [name, null]);
  table($("checks"), columns, rows, "no check");
}

// --- Listeners -----------------------------------------------------------------------------

// Days left of a certificate, as the log counts them.
function days(notAfter) {
  if (notAfter === null) return ["-"];
  const left = Math.floor((notAfter - summary.now) / 86400);
  return [left < 0 ? "expired" : `${left} d`, left < RENEW && "bad"];
}

// One value for each leg.
function pairOf(legs, shown) {
  const [down, up] = [shown(legs.downstream), shown(legs.upstream)];
  return h("td", {}, h("span", { class: down[1] }, down[0]), " / ", h("span", { class: up[1] }, up[0]));
}

function listeners() {
  if (!summary) return;
  const rows = summary.listeners.map((l) => {
    const { rate, accepts } = points[points.length - 1].of.get(l.listener);
    const full = l.limit && l.in_use >= l.limit;
    return h("tr", { class: "first" },
      cell(h("a", { href: `#/connections?listener=${encodeURIComponent(l.listener)}` }, l.listener)),
      cell(l.address), cell(l.upstream), n(age(l.detect_within_ms)),
      n(l.limit ? `${l.in_use}/${l.limit}` : l.active, full && "warn"),
      n(l.queued ? h("a", { href: `#/waiting/${encodeURIComponent(l.listener)}` }, l.queued) : 0, l.queued && "warn"),
      n(`${accepts.toFixed(1)}/s`), n(`${bytes(rate)}/s`), n(both(l.half_open), both(l.half_open) && "bad"),
      n(both(l.stalled), both(l.stalled) && "warn"), n(l.found), n(`${l.accept_queue}/${l.accept_queue_limit}`),
      pairOf(l.certificate_not_after, days), pairOf(l.proxy_protocol, (word) => [word]),
      n(both(l.undelivered), both(l.undelivered) && "warn"), n(l.phantom, l.phantom && "warn"), n(l.half_closed), n(l.accepted), n(l.rejected, l.rejected && "warn"), n(l.connect_failures, l.connect_failures && "warn"));
  });
  const numbers = (...names) => names.map((name) => [name, null, "n"]);
  const columns = [["Listener", null], ["Address", null], ["Upstream", null],
    ...numbers("D", "Sessions", "Waiting", "Clients", "Bytes", "Half-open", "Stalled", "Found", "Accept queue"),
    ["Certificates", null], ["PROXY", null],
    ...numbers("Undelivered", "Phantom", "Half-closed", "Accepted", "Rejected", "Connects failed")];
  table($("listener-rows"), columns, rows, "no listener");
}

async function endpoints() {
  const rows = (await ask("upstreams")).map((e) => h("tr", { class: "first" },
    cell(e.listener), cell(e.endpoint), cell(e.name || "-"), cell(e.state, e.state === "up" ? "good" : "bad"), n(age(e.since_ms)),
    n(e.last_check ? `${e.last_check.error === null ? "passed" : "failed"} ${age(e.last_check.ago_ms)} ago` : "-",
      e.last_check?.error && "bad"),
    n(e.active_sessions), n(e.connects), n(e.failures, e.failures && "warn"), n(e.consecutive_failures),
    n(e.ejections), n(e.ejected_for_ms ? age(e.ejected_for_ms) : "-"),
    cell(e.cause || e.last_check?.error || "-")));
  const columns = [["Listener", null], ["Endpoint", null], ["Name", null], ["State", null], ["Since", null, "n"],
    ["Last check", null, "n"]];
  const names = ["Sessions", "Connects", "Failures", "In a row", "Ejections", "Ejected for"];
  table($("endpoint-rows"), [...columns, ...names.map((name) => [name, null, "n"]), ["Cause", null]], rows, "no endpoint");
}

// --- Connections ---------------------------------------------------------------------------

function sortBy(key) {
  sort = key;
  refresh();
}

function colour(condition) {
  if (condition === "suspect") return "bad";
  return ["stalled", "undelivered", "phantom"].includes(condition) ? "warn" : undefined;
}

function pair(c) {
  const leg = (name, l, next) => l
    ? [cell(name), cell(l.peer || "-"), cell(l.state), cell(l.condition, colour(l.condition)), n(age(l.last_life_ms)),
      cell(next), n(l.received_bytes), n(l.sent_bytes), n(l.unacked), n(`${l.retransmits}/${l.probes}`), n(rtt(l.rtt_us))]
    : [cell(name), h("td", { colspan: 10, class: "quiet" }, "-")];
  const timer = (t) => (t ? `${t.reason} in ${age(t.in_ms)}` : "");
  const next = c.verdict ? `verdict: ${c.verdict}` : timer(c.timer);
  const half = c.phase === "half_closed" ? "warn" : undefined;
  return [
    h("tr", { class: "first" }, n(h("a", { href: `#/session/${c.id}` }, c.id)), cell(c.listener), cell(c.phase, half),
      n(age(c.age_ms)), n(age(c.idle_ms)), leg("downstream", c.downstream, next)),
    h("tr", {}, h("td", { colspan: 5 }), leg("upstream", c.upstream, timer(c.upstream?.timer))),
  ];
}

async function connections() {
  const query = new URLSearchParams(new FormData($("filters")));
  [...query].forEach(([name, value]) => value.trim() || query.delete(name));
  query.set("sort", sort);
  query.set("limit", limit);
  const list = await ask(`connections?${query}`);
  listed = summary ? summary.now : 0;
  const columns = [["ID", "id", "n"], ["Listener", null], ["Phase", null], ["Age", "age", "n"], ["Idle", "idle", "n"],
    ["Leg", null], ["Peer", null], ["State", null], ["Condition", null], ["Life", "last_life", "n"],
    ["Next", null], ["Received", "received", "n"], ["Sent", "sent", "n"], ["Unacked", null, "n"], ["Retr/probe", null, "n"],
    ["RTT", null, "n"]];
  table($("rows"), columns, list.connections.flatMap(pair), "no session matches");
  $("count").textContent = `${list.connections.length} shown, ${list.matched} matched, ${list.total} in all`;
  $("more").hidden = list.connections.length >= list.matched;
}

// --- One session ---------------------------------------------------------------------------

const sessionId = () => location.hash.split("/")[2];

// "downstream_dead in 24.0s unless heard"
const unless = (reason) => UNLESS[reason] || UNLESS[reason.replace(/^(downstream|upstream)_/, "")] || "";
const rings = (t) => `${t.reason} in ${age(t.in_ms)} ${unless(t.reason)}`.trim();

function facts(name, l) {
  if (!l) return h("section", { class: "tile" }, h("h3", {}, name), h("p", { class: "quiet" }, "not connected"));
  const pairs = [["Peer", l.peer || "-"], ["Local", l.local || "-"], ["State", l.state], ["Condition", l.condition],
    ["Last sign of life", `${age(l.last_life_ms)} ago`], ["Received", `${l.received_bytes} bytes`],
    ["Sent", `${l.sent_bytes} bytes`], ["Segments in flight", l.unacked], ["Not sent yet", `${l.notsent_bytes} bytes`],
    ["Retransmits in a row", l.retransmits], ["Probes without an answer", l.probes], ["Round trip", rtt(l.rtt_us)]];
  if (l.tls) {
    const tls = [l.tls.version, l.tls.cipher, l.tls.resumed && "resumed", l.tls.alpn && `ALPN ${l.tls.alpn}`];
    pairs.push(["TLS", tls.filter(Boolean).join(", ")]);
    if (l.tls.server_name) pairs.push(["SNI", l.tls.server_name]);
    if (l.tls.identity) pairs.push(["Certificate of", l.tls.identity]);
  }
  if (l.heartbeat) {
    const beat = l.heartbeat;
    const last = beat.last_answer_ms === null ? "none yet" : `the last ${age(beat.last_answer_ms)} ago`;
    pairs.push([`Heartbeat (${beat.profile})`, `${beat.state}; ${beat.answers} answers, ${last}`]);
  }
  const list = pairs.flatMap(([term, value]) => [h("dt", {}, term), h("dd", { class: term === "Condition" ? colour(value) : undefined }, value)]);
  return h("section", { class: "tile" }, h("h3", {}, name), h("dl", {}, list));
}

async function session() {
  const id = sessionId();
  $("session-id").textContent = id;
  const c = await ask(`connections/${encodeURIComponent(id)}`);
  const pairs = [["Listener", c.listener], ["Phase", c.phase], ["Age", age(c.age_ms)], ["Idle", age(c.idle_ms)],
    ["Ends next by", c.timer ? rings(c.timer) : "-"]];
  if (c.proxy) pairs.push(["Load balancer", c.proxy]);
  if (c.verdict) pairs.push(["Verdict", c.verdict]);
  const list = pairs.flatMap(([term, value]) => [h("dt", {}, term), h("dd", {}, value)]);
  draw($("legs"), h("section", { class: "tile" }, h("h3", {}, "Session"), h("dl", {}, list)),
    facts(LEGS.downstream, c.downstream), facts(LEGS.upstream, c.upstream));
  observe(c);
  draw($("lines"), timeLine(c, "downstream"), timeLine(c, "upstream"));
  const rows = c.clocks.map((t) => h("tr", { class: "first" }, cell(t.reason), n(age(t.in_ms)), cell(unless(t.reason))));
  table($("clocks"), [["Closes as", null], ["In", null, "n"], ["", null]], rows, "no clock runs");
  tcpInfo(c);
}

// The kernel's own words and units; those that the legs show by another name are named, too.
function tcpInfo(c) {
  const of = (name, leg) => {
    const l = c[leg];
    const same = l && { tcpi_unacked: l.unacked, tcpi_notsent_bytes: l.notsent_bytes, tcpi_retransmits: l.retransmits,
      tcpi_probes: l.probes, tcpi_rtt_us: l.rtt_us };
    return { ...same, ...Object.fromEntries(Object.entries(c.tcp_info[leg] || {}).map(([key, value]) => [`tcpi_${key}`, value])) }[name];
  };
  const names = ["tcpi_last_ack_recv_ms", "tcpi_last_data_recv_ms", "tcpi_last_data_sent_ms", "tcpi_probes", "tcpi_retransmits",
    "tcpi_backoff", "tcpi_unacked", "tcpi_notsent_bytes", "tcpi_snd_wnd", "tcpi_snd_cwnd", "tcpi_rto_us", "tcpi_rtt_us",
    "tcpi_rttvar_us", "tcpi_min_rtt_us", "tcpi_total_retrans", "tcpi_bytes_acked", "tcpi_bytes_received"];
  const rows = names.map((name) => h("tr", { class: "first" }, cell(h("code", {}, name)), n(of(name, "downstream") ?? "-"), n(of(name, "upstream") ?? "-")));
  table($("tcp"), [["Field", null], ["Downstream", null, "n"], ["Upstream", null, "n"]], rows, "");
}

// --- The time line of the session that is shown, from what was polled ----------------------

const unanswered = (leg) => leg.probes + leg.retransmits;

// Takes in one answer: what has happened on each leg since the one before.
function observe(c) {
  const now = performance.now();
  // A process that was started again counts from 1 again.
  if (seen.id !== c.id || c.age_ms < seen.before?.age_ms) seen = { id: c.id, since: now, before: null, marks: { downstream: [], upstream: [] } };
  for (const leg of ["downstream", "upstream"]) {
    const [l, before] = [c[leg], seen.before?.[leg]];
    if (!l) continue;
    const marks = seen.marks[leg];
    const heard = now - l.last_life_ms;
    const last = marks.findLast((mark) => mark.kind === "data" || mark.kind === "answer");
    // An answer takes its time to come here.
    if (!last || heard > last.at + 150) {
      const moved = before && l.received_bytes > before.received_bytes;
      marks.push({ at: heard, kind: moved ? "data" : "answer" });
    }
    // When those of the first answer were asked is not known.
    if (before && unanswered(l) > unanswered(before)) marks.push({ at: now, kind: "asked" });
    if (before && (l.heartbeat?.answers || 0) > (before.heartbeat?.answers || 0)) marks.push({ at: now, kind: "beat" });
    seen.marks[leg] = marks.filter((mark) => mark.at > now - WATCHED);
  }
  seen.before = c;
}

// Two thirds are past, then comes what is to come, on the same scale.
function timeLine(c, leg) {
  const now = performance.now();
  const span = Math.min(WATCHED, Math.max(60000, now - seen.since));
  const x = (at) => NOW + ((at - now) * NOW) / span;
  const marks = seen.marks[leg];
  const lane = (name, shapes) => {
    const picture = svg("svg", { viewBox: "0 0 600 20", preserveAspectRatio: "none", "aria-hidden": "true" });
    picture.append(svg("rect", { class: "future", x: NOW, y: 0, width: 600 - NOW, height: 20 }), ...shapes);
    return [h("span", { class: "quiet" }, name), picture];
  };
  const ticks = (kinds) => marks.filter((mark) => kinds.includes(mark.kind) && x(mark.at) >= 0)
    .map((mark) => svg("line", { class: mark.kind, x1: x(mark.at), x2: x(mark.at), y1: mark.kind === "data" ? 1 : 6, y2: 19 }));
  const l = c[leg];
  const silence = [];
  if (l) {
    const from = Math.max(0, x(now - l.last_life_ms));
    silence.push(svg("rect", { class: `silence ${colour(l.condition) || ""}`, x: from, y: 6, width: NOW - from, height: 8 }));
    const ends = l.timer && x(now + l.timer.in_ms);
    if (ends && ends <= 600) silence.push(svg("line", { class: "end", x1: ends, x2: ends, y1: 0, y2: 20 }));
  }
  const signs = marks.filter((mark) => mark.kind === "data" || mark.kind === "answer").length;
  const several = (n, one, more) => `${n} ${n === 1 ? one : more}`;
  const told = `${several(signs, "sign of life", "signs of life")} seen, `
    + `${several(l ? unanswered(l) : 0, "question is", "questions are")} unanswered`;
  const lanes = h("div", { class: "lanes", role: "img", "aria-label": `${leg}: ${told}` },
    lane("heard", ticks(["data", "answer"])), lane("asked", ticks(["asked", "beat"])), lane("silence", silence),
    h("span", {}), h("p", { class: "axis quiet" }, h("span", {}, `${age(span)} ago`), h("span", {}, "now"), h("span", {}, `+${age(span / 2)}`)));
  const ends = l?.timer ? rings(l.timer) : l ? "no clock of this leg runs" : "not connected";
  return h("section", { class: "tile" }, h("h3", {}, LEGS[leg]), h("p", { class: l && colour(l.condition) }, ends), lanes,
    h("p", { class: "quiet" }, told));
}

async function verify() {
  $("answer").textContent = "asking both peers";
  const v = await change("POST", `connections/${sessionId()}/verify`);
  const told = (name, leg) => leg && `${name} ${leg.answer}${leg.evidence ? ` (${leg.evidence})` : ""} after ${leg.took_ms}ms`;
  $("answer").textContent = [told("downstream", v.downstream), told("upstream", v.upstream)].filter(Boolean).join("; ");
}

async function end() {
  const id = sessionId();
  const reason = await sure(`End session ${id}? Both peers get RST after what was received was delivered.`, true);
  if (reason === null) return;
  const query = reason ? `?${new URLSearchParams({ reason })}` : "";
  $("answer").textContent = await change("DELETE", `connections/${id}${query}`);
}

// --- Waiting -------------------------------------------------------------------------------

// One line is asked for, by two lists of 50 sessions at most.
async function waiting() {
  if (!summary) return;
  const limited = summary.listeners.filter((l) => l.limit || l.queued);
  const rows = limited.map((l) => h("tr", { class: "first" },
    cell(h("a", { href: `#/waiting/${encodeURIComponent(l.listener)}` }, l.listener)),
    n(l.limit ? `${l.in_use}/${l.limit}` : l.in_use, l.limit && l.in_use >= l.limit && "warn"), n(l.queued, l.queued && "warn"),
    cell(l.on_full), n(l.queue_timeout_ms === null ? "off" : age(l.queue_timeout_ms))));
  const columns = [["Listener", null], ["Places", null, "n"], ["Waiting", null, "n"], ["on_full", null], ["queue_timeout", null, "n"]];
  table($("limited"), columns, rows, "no listener has a limit of its own (limits.max_connections), and nobody waits");
  const wanted = decodeURIComponent(location.hash.split("/")[2] || "");
  const line = limited.find((l) => l.listener === wanted) || [...limited].sort((a, b) => b.queued - a.queued)[0];
  $("line").hidden = !line;
  if (!line) return;
  document.querySelectorAll(".of-line").forEach((e) => { e.textContent = line.listener; });
  $("next").textContent = `${line.on_full}: ${ON_FULL[line.on_full]}`;
  listed = summary.now;
  const of = (more) => ask(`connections?${new URLSearchParams({ listener: line.listener, sort: "age", limit: LINE, ...more })}`);
  const [all, queued] = [await of({}), line.queued ? await of({ phase: "queued" }) : { connections: [] }];
  const holders = all.connections.filter((c) => c.phase !== "queued");
  const session = (c) => [n(h("a", { href: `#/session/${c.id}` }, c.id)), cell(c.downstream.peer || "-")];
  const held = holders.map((c) => h("tr", { class: "first" }, session(c), cell(c.phase), n(age(c.age_ms)), n(age(c.idle_ms)),
    n(age(Math.max(c.downstream.last_life_ms, c.upstream?.last_life_ms || 0))), cell(worst(c), colour(worst(c))),
    cell(c.timer ? rings(c.timer) : "-")));
  const waits = queued.connections.map((c, i) => h("tr", { class: "first" }, n(i + 1), session(c), n(age(c.age_ms)),
    n(age(c.downstream.last_life_ms)), cell(c.downstream.condition, colour(c.downstream.condition)), cell(c.timer ? rings(c.timer) : "-")));
  const head = [["ID", null, "n"], ["Client", null]];
  table($("holders"), [...head, ["Phase", null], ["Age", null, "n"], ["Idle", null, "n"], ["Life", null, "n"], ["Condition", null],
    ["Next", null]], held, "nobody; a place may rest for limits.reconnect_delay");
  table($("queue"), [["", null, "n"], ...head, ["Waits for", null, "n"], ["Life", null, "n"], ["Condition", null], ["Next", null]],
    waits, "nobody");
}

// The condition of a session: that of its worse leg.
function worst(c) {
  const both = [c.downstream.condition, c.upstream?.condition || "alive"];
  return both.find((word) => word === "suspect") || both.find(colour) || both.find((word) => word !== "alive") || "alive";
}

// --- Found, configuration ------------------------------------------------------------------

async function fetchFound() {
  const total = sum((l) => l.found);
  if (summary && total === foundTotal && found.now) {
    found.now = summary.now;
    return;
  }
  found = await ask("found");
  foundTotal = total;
}

function showFound() {
  groups($("groups"), found.groups);
  const rows = found.ends.map((e) => h("tr", { class: "first" },
    cell(`${age(1000 * (found.now - e.at))} ago`), n(e.id), cell(e.listener), cell(e.reason), cell(e.evidence || "-"),
    cell(peer(e)), n(e.silent_ms === null ? "-" : age(e.silent_ms)), n(age(e.duration_ms)),
    n(e[`${e.leg}_received`]), n(e[`${e.leg}_sent`])));
  const columns = [["When", null], ["ID", null, "n"], ["Listener", null], ["Reason", null], ["Evidence", null],
    ["Peer", null], ["Silent", null, "n"], ["Age", null, "n"], ["Received", null, "n"], ["Sent", null, "n"]];
  table($("ends"), columns, rows, "no peer was found gone or hanging");
}

async function config() {
  const fill = (id, text) => { if ($(id).textContent !== text) $(id).textContent = text; };
  fill("yaml", await ask("config"));
  fill("explain", await ask("explain"));
  const whole = (r) => reloadLines(r).map((line) => h("div", { class: r.outcome === "failure" ? "bad" : undefined }, line));
  const rows = (await ask("reloads")).flatMap((r) => [
    h("tr", { class: "first" }, cell(`${age(1000 * Math.max(0, (summary?.now ?? r.at) - r.at))} ago`), cell(r.asked_by),
      cell(r.outcome, r.outcome === "failure" ? "bad" : "good")),
    h("tr", {}, h("td", { class: "wrap", colspan: 3 }, h("div", { class: "quiet" }, new Date(1000 * r.at).toISOString().replace(".000Z", "Z")), whole(r))),
  ]);
  const columns = ["When", "Asked by", "Outcome"].map((name) => [name, null]);
  table($("reloads"), columns, rows, "none since the start");
}

// As pulsegate reload prints them.
function reloadLines(r) {
  const list = (name, keys) => keys.map((key) => `${name}: ${key}`);
  const lines = [...list("applied", r.applied), ...list("new sessions only", r.new_sessions_only),
    ...list("needs a restart", r.needs_restart), ...(r.errors || [])];
  return lines.length ? lines : ["nothing differs"];
}

async function reload() {
  $("reloaded").textContent = "reading the files";
  try {
    $("reloaded").textContent = reloadLines(await change("POST", "reload")).join("; ");
  } catch (error) {
    $("reloaded").textContent = `nothing has changed: ${error.message}`;
  }
}

async function drain() {
  const sessions = summary ? summary.sessions : 0;
  const question = `Drain? No new client is taken, ${sessions} sessions finish, and the process ends.`;
  if ((await sure(question, false)) !== null) $("status").textContent = await change("POST", "drain");
}

// --- Time ----------------------------------------------------------------------------------

function take(next) {
  const of = new Map();
  const before = points[points.length - 1];
  const seconds = before ? (next.monotonic_ms - before.at) / 1000 : 0;
  if (summary && before && seconds <= 0) return;
  next.listeners.forEach((l) => {
    const [moved, old] = [both(l.received_bytes), before?.of.get(l.listener)];
    const each = (now, then) => (old ? Math.max(0, now - then) / seconds : 0);
    of.set(l.listener, { moved, accepted: l.accepted, found: l.found, failed: l.connect_failures, rate: each(moved, old?.moved), accepts: each(l.accepted, old?.accepted) });
  });
  summary = next;
  // Each listener by itself: a reload takes listeners away, a restart begins at 0.
  const risen = (now, key) => (before ? sum((l) => Math.max(0, now(l) - (before.of.get(l.listener)?.[key] ?? 0))) : 0);
  const point = {
    now: next.now, at: next.monotonic_ms, of, sessions: next.sessions,
    foundNew: risen((l) => l.found, "found"), failedNew: risen((l) => l.connect_failures, "failed"),
    hung: sum((l) => both(l.stalled) + both(l.undelivered) + l.phantom),
    rate: [...of.values()].reduce((all, o) => all + o.rate, 0),
  };
  points = [...points, point].filter((p) => p.now > next.now - KEPT);
  $("version").textContent = next.version;
  const select = $("filters").elements.listener;
  const known = [...select.options].map((o) => o.value);
  next.listeners.filter((l) => !known.includes(l.listener)).forEach((l) => select.append(h("option", {}, l.listener)));
  tell(next.draining ? "draining" : "live", next.draining);
  const isCostly = next.sessions > MANY && (view() === "waiting" || (view() === "connections" && asksAll()));
  if (!isCostly || next.now - listed >= 5) refresh();
}

// Only a look tells whether these filters leave a session.
function asksAll() {
  const { min_idle, condition, phase } = $("filters").elements;
  return min_idle.value || ["alive", "quiet"].includes(condition.value) || ["open", "half_closed"].includes(phase.value);
}

function tell(text, lost) {
  $("status").textContent = text;
  $("status").className = lost ? "lost" : "";
}

const view = () => {
  const name = location.hash.slice(2).split(/[/?]/)[0];
  return VIEWS.includes(name) ? name : "overview";
};

// What the view shows is asked for again, one request at a time.
async function refresh() {
  if (asking || document.hidden) return;
  asking = true;
  try {
    const now = view();
    if (["overview", "found"].includes(now)) await fetchFound();
    if (now === "overview") { overview(); await host(); }
    else if (now === "listeners") { listeners(); await endpoints(); }
    else if (now === "connections" && !paused) await connections();
    else if (now === "session") await session();
    else if (now === "waiting") await waiting();
    else if (now === "found") showFound();
    else if (now === "config") await config();
    say("");
  } catch (error) {
    say(error.message);
  }
  asking = false;
}

function route() {
  const now = view();
  document.querySelectorAll("main").forEach((main) => { main.hidden = main.id !== now; });
  document.querySelectorAll("nav a").forEach((a) => {
    const here = a.hash === `#/${now}` || (now === "session" && a.hash === "#/connections");
    if (here) a.setAttribute("aria-current", "page"); else a.removeAttribute("aria-current");
  });
  $("answer").textContent = "";
  $("reloaded").textContent = "";
  const query = location.hash.split("?")[1];
  if (now === "connections" && query) {
    $("filters").reset();
    new URLSearchParams(query).forEach((value, name) => {
      const field = $("filters").elements[name];
      if (field) field.value = value;
    });
  }
  refresh();
}

// Server-sent events; where there are none, the same is polled. A page that nobody sees asks nothing.
function listen() {
  events?.close();
  events = null;
  if (document.hidden) return;
  events = new EventSource("events");
  events.onmessage = (message) => take(JSON.parse(message.data));
}

async function poll() {
  if (!document.hidden && events?.readyState !== EventSource.OPEN) {
    try {
      take(await ask("summary"));
      if (events?.readyState === EventSource.CLOSED) listen();
    } catch {
      tell("not reachable", true);
    }
  }
  setTimeout(poll, 2000);
}

function doing(action) {
  return () => action().then(refresh, (error) => say(error.message));
}

function begin() {
  PHASES.forEach((word) => $("filters").elements.phase.append(h("option", {}, word)));
  CONDITIONS.forEach((word) => $("filters").elements.condition.append(h("option", {}, word)));
  const may = {
    open: "Changes are accepted at this address.",
    token: "Changes are accepted at this address with the token of admin.token_file.",
    never: "Changes are not accepted at this address: use a loopback address, admin.control or admin.token_file.",
  };
  $("may").textContent = may[CHANGES];
  $("token").hidden = CHANGES !== "token";
  ["verify", "end", "reload", "drain"].forEach((id) => { $(id).hidden = CHANGES === "never"; });
  $("verify").addEventListener("click", doing(verify));
  $("end").addEventListener("click", doing(end));
  $("reload").addEventListener("click", doing(reload));
  $("drain").addEventListener("click", doing(drain));
  $("filters").addEventListener("input", () => { limit = PAGE; refresh(); });
  $("filters").addEventListener("reset", () => setTimeout(refresh));
  $("token").addEventListener("submit", (event) => event.preventDefault());
  $("filters").addEventListener("submit", (event) => { event.preventDefault(); refresh(); });
  $("more").addEventListener("click", () => { limit += PAGE; refresh(); });
  $("pause").addEventListener("click", () => {
    paused = !paused;
    $("pause").setAttribute("aria-pressed", String(paused));
    refresh();
  });
  document.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "/" && view() === "connections") {
      event.preventDefault();
      $("filters").elements.peer.focus();
    } else if (event.key === "p" && view() === "connections") $("pause").click();
  });
  window.addEventListener("hashchange", route);
  document.addEventListener("visibilitychange", listen);
  route();
  listen();
  poll();
}

begin();
