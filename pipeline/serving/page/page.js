// The page sends the image twice, for bicubic interpolation and for the model, and shows both answers over each other.
const at = id => document.getElementById(id);
const [drop, file, view, stage, boundary, format, download] =
  ["drop", "file", "view", "stage", "boundary", "format", "download"].map(at);
const server = await (await fetch("v1/model")).json();
let chosen = null; // the image, a File
let compared = null; // the image whose bicubic interpolation is shown, a File
let zoom = "fit";
let running = new AbortController();

at("model").textContent = `${server.model} enlarges height and width by ${server.scale}.`;
at("limits").textContent =
  `Up to ${number(server.max_megabytes)} MB, and ${number(server.max_megapixels)} megapixels when it is enlarged`;
format.replaceChildren(...server.formats.filter(name => name !== "tiff").map(name => new Option(name.toUpperCase(), name)));

function number(value) {
  return value.toLocaleString("en", { maximumSignificantDigits: 3 });
}

function bytes(count) {
  return count < 1e6 ? `${number(count / 1e3)} kB` : `${number(count / 1e6)} MB`;
}

async function upscale(image, method, answerFormat, signal) {
  const started = performance.now();
  const answer = await fetch(`v1/upscale?${new URLSearchParams({ method, format: answerFormat })}`, {
    method: "POST", body: image, headers: { "Content-Type": "application/octet-stream" }, signal,
  });
  if (!answer.ok) {
    const { error } = await answer.json().catch(() => ({ error: `the server answered ${answer.status}` }));
    throw new Error(error);
  }
  return { blob: await answer.blob(), seconds: (performance.now() - started) / 1000 };
}

// Both versions are decoded before one of them is shown, so that those of two images never lie over each other.
async function decode(id, blob) {
  const version = at(id).cloneNode();
  version.src = URL.createObjectURL(blob);
  await version.decode();
  return version;
}

function show(version) {
  const shown = at(version.id);
  URL.revokeObjectURL(shown.src);
  shown.replaceWith(version);
}

async function run() {
  running.abort();
  running = new AbortController();
  const { signal } = running;
  const [image, form] = [chosen, format.value];
  at("error").textContent = "";
  at("status").textContent = `Upscaling ${image.name || "the image"} …`;
  at("status").classList.add("busy");
  download.removeAttribute("href");
  try {
    const answers = [upscale(image, "model", form, signal)];
    if (compared !== image) answers.push(upscale(image, "bicubic", "png", signal));
    const [model, bicubic] = await Promise.all(answers);
    const versions = [decode("after", model.blob)];
    if (bicubic) versions.push(decode("before", bicubic.blob));
    const decoded = await Promise.all(versions);
    if (signal.aborted) {
      for (const version of decoded) URL.revokeObjectURL(version.src);
      return;
    }
    decoded.forEach(show);
    compared = image;
    report(image, form, model);
  } catch (error) {
    if (signal.aborted) return;
    at("error").textContent = error instanceof TypeError ? "The server cannot be reached." : sentence(error.message);
    at("status").textContent = "";
    if (at("after").src) download.href = at("after").src; // the image before this one is still shown
  }
  at("status").classList.remove("busy");
}

function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1) + (text.endsWith(".") ? "" : ".");
}

function report(image, form, { blob, seconds }) {
  const { naturalWidth: width, naturalHeight: height } = at("after");
  at("original").textContent = `${width / server.scale} x ${height / server.scale} pixels, ${bytes(image.size)}`;
  at("upscaled").textContent = `${width} x ${height} pixels`;
  at("time").textContent = `${seconds.toFixed(2)} s`;
  at("size").textContent = `${form.toUpperCase()}, ${bytes(blob.size)}`;
  at("status").textContent = "";
  download.href = at("after").src;
  download.download = `${(image.name || "image").replace(/\.[^.]*$/, "")}-x${server.scale}.${form}`;
  at("result").hidden = false;
  drop.classList.add("small");
  layOut();
}

function choose(image) {
  if (!image) return;
  chosen = image;
  run();
}

// The boundary is a share of the visible part, so that it stays in sight when the image is larger than the view.
function layOut() {
  const { naturalWidth: width, naturalHeight: height } = at("after");
  const [room, most] = [at("tools").clientWidth, Math.max(window.innerHeight - 390, 260)];
  const factor = zoom === "fit" ? Math.min(room / width, most / height) : zoom / window.devicePixelRatio;
  view.classList.toggle("fit", zoom === "fit");
  stage.classList.toggle("pixels", factor * window.devicePixelRatio > 1.5);
  stage.style.width = `${width * factor}px`;
  stage.style.height = `${height * factor}px`;
  at("frame").style.width = `${Math.min(width * factor, room)}px`;
  view.style.height = `${Math.min(height * factor, most)}px`;
  moveBoundary();
}

function moveBoundary() {
  stage.style.setProperty("--boundary", `${view.scrollLeft + (boundary.value / 100) * view.clientWidth}px`);
}

function setZoom(value) {
  const centre = [0.5, 0.5].map((half, axis) => {
    const [scroll, client, size] = axis
      ? [view.scrollTop, view.clientHeight, stage.offsetHeight] : [view.scrollLeft, view.clientWidth, stage.offsetWidth];
    return size > client ? (scroll + client / 2) / size : half;
  });
  zoom = value === "fit" ? value : Number(value);
  for (const button of document.querySelectorAll("[data-zoom]")) {
    button.setAttribute("aria-pressed", button.dataset.zoom === value);
  }
  layOut();
  view.scrollTo(
    centre[0] * stage.offsetWidth - view.clientWidth / 2, centre[1] * stage.offsetHeight - view.clientHeight / 2);
  moveBoundary();
}

file.addEventListener("change", () => { choose(file.files[0]); file.value = ""; });
document.addEventListener("dragover", event => { event.preventDefault(); drop.classList.add("over"); });
document.addEventListener("dragleave", () => drop.classList.remove("over"));
document.addEventListener("drop", event => {
  event.preventDefault();
  drop.classList.remove("over");
  choose(event.dataTransfer.files[0]);
});
document.addEventListener("paste", event => choose(event.clipboardData.files[0]));
format.addEventListener("change", () => { if (chosen) run(); });
boundary.addEventListener("input", moveBoundary);
view.addEventListener("scroll", moveBoundary);
window.addEventListener("resize", layOut);
for (const button of document.querySelectorAll("[data-zoom]")) {
  button.addEventListener("click", () => setZoom(button.dataset.zoom));
}

// A drag moves the boundary while the whole image is visible, and the image when it is enlarged.
stage.addEventListener("pointerdown", event => {
  if (event.button || (zoom !== "fit" && event.pointerType === "touch")) return;
  event.preventDefault();
  stage.setPointerCapture(event.pointerId);
  const start = [event.clientX, event.clientY, view.scrollLeft, view.scrollTop];
  const move = moved => {
    if (zoom === "fit") {
      const box = stage.getBoundingClientRect();
      boundary.value = (100 * (moved.clientX - box.left)) / box.width;
    } else {
      view.scrollTo(start[2] + start[0] - moved.clientX, start[3] + start[1] - moved.clientY);
    }
    moveBoundary();
  };
  move(event);
  stage.addEventListener("pointermove", move);
  stage.addEventListener("lostpointercapture", () => stage.removeEventListener("pointermove", move), { once: true });
});
