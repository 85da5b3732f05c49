// PouchDB server: CouchDB's HTTP API over LevelDB, with what replication needs and no more.
// node server.js FOLDER PORT
'use strict';
const express = require('express');
const api = require('express-pouchdb');
const PouchDB = require('pouchdb').defaults({ prefix: process.argv[2] + '/' });

const app = express();
app.use('/', api(PouchDB, { mode: 'minimumForPouchDB' }));
app.listen(Number(process.argv[3]), '127.0.0.1');
process.stdin.resume().on('end', () => process.exit(0));
