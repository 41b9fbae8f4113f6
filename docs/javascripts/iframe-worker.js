/* Search in pages that are opened as files: browsers start no worker from a file, so that a hidden frame takes its place. */
if (location.protocol === "file:") {
  window.Worker = class FrameWorker extends EventTarget {
    constructor(url) {
      super();
      this.onmessage = null;
      this.ready = new Promise((resolve) => {
        this.frame = document.createElement("iframe");
        this.frame.hidden = true;
        this.frame.srcdoc = "<html><body></body></html>";
        this.frame.onload = () => {
          const inside = this.frame.contentWindow;
          const run = (address) =>
            new Promise((done, failed) => {
              const script = inside.document.createElement("script");
              script.src = address;
              script.onload = done;
              script.onerror = failed;
              inside.document.body.appendChild(script);
            });
          inside.importScripts = (...addresses) =>
            addresses.reduce((before, address) => before.then(() => run(address)), Promise.resolve());
          inside.postMessage = (data) => {
            const event = new MessageEvent("message", { data });
            this.dispatchEvent(event);
            if (this.onmessage) this.onmessage(event);
          };
          run(url).then(() => resolve(inside));
        };
        document.body.appendChild(this.frame);
      });
    }
    postMessage(data) {
      this.ready.then((inside) => inside.dispatchEvent(new inside.MessageEvent("message", { data })));
    }
    terminate() {
      this.frame.remove();
    }
  };
}
