"""Line charts and bars: which ones a report has, and how they are drawn."""
