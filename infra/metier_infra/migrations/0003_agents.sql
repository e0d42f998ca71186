-- Under what a call was worked on (JSON), and why somebody gave it up; NULL where nobody said.
ALTER TABLE calls ADD COLUMN stamp text;
ALTER TABLE calls ADD COLUMN cancelled text;
