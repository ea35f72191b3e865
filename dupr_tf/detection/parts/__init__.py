"""Parts that detectors share: feature pyramid, anchors, box coding and suppression, matching and sampling."""
