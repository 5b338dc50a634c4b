// One request with Node's own fetch: prints the body and, in the last line, the status.
const [method, url] = process.argv.slice(2);
const answer = await fetch(url, { method });
console.log(await answer.text());
console.log(answer.status);
