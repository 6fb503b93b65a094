// Browsers start no worker from a file, so the search of a page that was opened from a folder runs
// in a hidden frame instead. On a server this does nothing. See docs/adr/0061.
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget { // the search looks for this name
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.documentElement.append(frame);
      const inside = frame.contentWindow;
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      const script = inside.document.createElement("script");
      const loaded = new Promise((resolve) => script.addEventListener("load", resolve));
      this.postMessage = (data) => // what is asked before the script is there waits for it
        loaded.then(() => inside.dispatchEvent(new inside.MessageEvent("message", { data })));
      this.terminate = () => frame.remove();
      script.src = url;
      inside.document.head.append(script);
    }
  };
  window.Worker = window.IFrameWorker;
}
