// An image that a mask is painted over with the mouse, a pen or a finger: white where it was painted, at the image's
// own size. data: {id, image, width, height, radius}; the state `mask` is {id, png}, or null where nothing is painted.
export default function ({ data, parentElement, setStateValue }) {
  const find = (name) => parentElement.querySelector(`.${name}`);
  const [picture, canvas, brush, erase] = ["picture", "canvas", "brush", "erase"].map(find);
  const context = canvas.getContext("2d");
  if (canvas.dataset.id !== data.id) {
    canvas.dataset.id = data.id;
    picture.src = data.image;
    [canvas.width, canvas.height] = [data.width, data.height]; // this empties it
    brush.max = Math.max(2, Math.round(Math.max(data.width, data.height) / 4));
    brush.value = data.radius;
  }

  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * canvas.width;
    return [x, ((event.clientY - box.top) / box.height) * canvas.height];
  };
  const stroke = (event) => {
    const now = place(event);
    context.globalCompositeOperation = erase.checked ? "destination-out" : "source-over";
    context.strokeStyle = "#ff2b6d";
    context.lineCap = context.lineJoin = "round";
    context.lineWidth = 2 * brush.value;
    context.beginPath();
    context.moveTo(...canvas.last);
    context.lineTo(...now);
    context.stroke();
    canvas.last = now;
  };
  const send = () => {
    const mask = document.createElement("canvas");
    [mask.width, mask.height] = [canvas.width, canvas.height];
    const sheet = mask.getContext("2d");
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
    let any = false;
    for (let i = 0; i < pixels.data.length; i += 4) {
      const on = pixels.data[i + 3] >= 128;
      any ||= on;
      pixels.data.fill(on ? 255 : 0, i, i + 3);
      pixels.data[i + 3] = 255;
    }
    sheet.putImageData(pixels, 0, 0);
    setStateValue("mask", any ? { id: data.id, png: mask.toDataURL("image/png") } : null);
  };

  canvas.onpointerdown = (event) => {
    if (event.button !== 0) return;
    canvas.setPointerCapture(event.pointerId);
    canvas.last = place(event); // kept there: the page may run this again in the middle of a stroke
    stroke(event);
  };
  canvas.onpointermove = (event) => {
    if (canvas.last) stroke(event);
  };
  canvas.onpointerup = canvas.onpointercancel = () => {
    if (canvas.last) send();
    canvas.last = null;
  };
  find("clear").onclick = () => {
    context.clearRect(0, 0, canvas.width, canvas.height);
    setStateValue("mask", null);
  };
}
