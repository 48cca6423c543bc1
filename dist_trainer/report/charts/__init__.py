"""Line charts and bars: which a report has, and how they are drawn."""
